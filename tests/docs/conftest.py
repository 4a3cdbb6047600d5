import pathlib
import sys

# The modules that make the site's reference lie beside its pages.
sys.path.append(str(pathlib.Path(__file__).parents[2] / "docs"))
