import pytest

from starcoder_jax.planning.compiled import CompiledProgram

TEXT = """HloModule jit_f

%fused (layers: f32[40,256,256], index: s32[], x: f32[256,256]) -> f32[40,256,256] {
  %layers = f32[40,256,256]{2,1,0} parameter(0)
  %index = s32[] parameter(1)
  %x = f32[256,256]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %layer = f32[1,256,256]{2,1,0} dynamic-slice(%layers, %index, %zero, %zero), \
dynamic_slice_sizes={1,256,256}
  %x.1 = f32[1,256,256]{2,1,0} bitcast(%x)
  %sum = f32[1,256,256]{2,1,0} add(%layer, %x.1)
  ROOT %updated = f32[40,256,256]{2,1,0} dynamic-update-slice(%layers, %sum, %index, %zero, %zero)
}

ENTRY %main (layers: f32[40,256,256], index: s32[], x: f32[256,256]) -> f32[40,256,256] {
  %layers = f32[40,256,256]{2,1,0} parameter(0)
  %index = s32[] parameter(1)
  %x = f32[256,256]{1,0} parameter(2)
  BODY
}
"""
LAYER = 4 * 256 * 256


@pytest.mark.parametrize(
    ("line", "moved"),
    [
        # One layer of forty is read and written; the index counts too.
        (
            "ROOT %out = f32[40,256,256]{2,1,0} fusion(%layers, %index, %x), kind=kLoop, "
            "calls=%fused",
            3 * LAYER + 4,
        ),
        ("ROOT %out = f32[256,256]{1,0} add(%x, %x)", 3 * LAYER),
        ("ROOT %out = f32[256,256]{1,0:T(8,128)S(1)} add(%x, %x)", 2 * LAYER),
        (
            "ROOT %out = (f32[256,256]{1,0:S(1)}, f32[256,256]{1,0}, u32[]{:S(2)}) copy-start(%x)",
            LAYER,
        ),
        (
            "ROOT %out = f32[2,256,256]{2,1,0} dynamic-slice(%layers, %index, %index, %index), "
            "dynamic_slice_sizes={2,256,256}",
            4 * LAYER,
        ),
        (
            "ROOT %out = f32[40,256,256]{2,1,0} dynamic-update-slice(%layers, %x, %index, %index, "
            "%index)",
            2 * LAYER,
        ),
        ("ROOT %out = f32[65536]{0} bitcast(%x)", 0),
        ("ROOT %out = f32[2,256,256]{2,1,0} all-gather(%x), dimensions={0}", 0),
    ],
    ids=["fusion", "add", "fast memory", "prefetch", "slice", "update", "name", "collective"],
)
def test_bytes_to_and_from_memory(line, moved):
    program = CompiledProgram(TEXT.replace("BODY", line), 1)
    assert sum(item.runs * item.moved_bytes for item in program.operations()) == moved
