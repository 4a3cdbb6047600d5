"""docs/ablations.md says what its results say."""

import copy

import pytest
import update_ablations
from documented import ROOT

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def results():
    return update_ablations.read_results()


def test_tables_and_figures_are_of_the_results(results):
    page = (DOCS / "ablations.md").read_text()
    written, figures = update_ablations.update(page, results)
    assert written == page, "run: python docs/update_ablations.py"
    assert len(figures) >= 4 and figures.keys() == results.keys()
    for name, figure in figures.items():
        assert (DOCS / "ablations" / f"{name}.svg").read_text() == figure
        assert f"--gin_file=ablations/{name}.gin" in page


def test_all_results_are_whole_and_of_several_seeds(results):
    for name, found in results.items():
        assert found["complete"] and len(found["seeds"]) > 2, name


def test_a_change_of_a_result_changes_the_page(results):
    name, found = next(iter(results.items()))
    changed = copy.deepcopy(found)
    metric = changed["comparisons"][0]
    metric["arms"][changed["first_arm"]]["mean"] += 1
    page = f"<!-- {name}: {metric['metric']} -->\n<!-- end -->\n"
    before = update_ablations.update(page, {name: found})
    after = update_ablations.update(page, {name: changed})
    assert before[0] != after[0]


def test_what_there_is_not_is_named(results):
    with pytest.raises(ValueError, match="names 'none', which ablations has not"):
        update_ablations.update("<!-- none: eval/loss -->\n<!-- end -->\n", results)
    name = next(iter(results))
    with pytest.raises(ValueError, match=f"{name} has no metric 'eval/lost'; it has eval/loss"):
        update_ablations.update(f"<!-- {name}: eval/lost -->\n<!-- end -->\n", results)
