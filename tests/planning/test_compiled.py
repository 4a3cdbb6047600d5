import jax
import jax.numpy as jnp
import pytest

from starcoder_jax.planning.compiled import Collective, CompiledProgram

# A TPU's program in miniature: two nested loops, one of which steps by two, and products with
# several free axes, which become convolutions.
TPU = """HloModule jit_f, is_scheduled=true

%add.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%fused (p: bf16[4096,6144], q: bf16[6144,4,128]) -> bf16[4096,4,128] {
  %p = bf16[4096,6144]{1,0:T(8,128)(2,1)} parameter(0)
  %q = bf16[6144,4,128]{2,0,1:T(4,128)(2,1)} parameter(1)
  %p.1 = bf16[4096,6144,1]{1,0,2:T(8,128)(2,1)} bitcast(%p)
  ROOT %convolution.1 = bf16[4096,4,128]{0,2,1:T(8,128)(2,1)} convolution(%p.1, %q), \
window={size=4 pad=3_3 rhs_reversal=1}, dim_labels=bf0_i0o->b0f
}

%inner_condition (s: (s32[], f32[64,128])) -> pred[] {
  %s = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) parameter(0)
  %bound = s32[]{:T(128)} constant(8)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%inner_body (s: (s32[], f32[64,128])) -> (s32[], f32[64,128]) {
  %s = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %x = f32[64,128]{1,0:T(8,128)} get-tuple-element(%s), index=1
  %permuted = f32[64,128]{1,0:T(8,128)} collective-permute(%x), channel_id=3, \
source_target_pairs={{0,1},{1,0}}
  ROOT %t = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) tuple(%next, %permuted)
}

%outer_condition (s: (s32[], f32[64,128])) -> pred[] {
  %s = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) parameter(0)
  %bound = s32[]{:T(128)} constant(40)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%outer_body (s: (s32[], f32[64,128])) -> (s32[], f32[64,128]) {
  %s = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %x = f32[64,128]{1,0:T(8,128)} get-tuple-element(%s), index=1
  %zero = s32[]{:T(128)} constant(0)
  %state = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) tuple(%zero, %x)
  %loop = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) while(%state), \
condition=%inner_condition, body=%inner_body
  %y = f32[64,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
  %summed = f32[64,128]{1,0:T(8,128)} all-reduce(%y), channel_id=4, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, to_apply=%add.1
  ROOT %t = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) tuple(%next, %summed)
}

ENTRY %main (p0: bf16[4096,6144], p1: bf16[6144,4,128], p2: f32[64,128]) -> f32[64,128] {
  %p0 = bf16[4096,6144]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[6144,4,128]{2,0,1:T(4,128)(2,1)} parameter(1)
  %p2 = f32[64,128]{1,0:T(8,128)} parameter(2)
  %product = bf16[4096,4,128]{0,2,1:T(8,128)(2,1)} fusion(%p0, %p1), kind=kOutput, calls=%fused
  %start = (bf16[96,128]{1,0}, bf16[768,128]{1,0}, u32[], u32[]) all-gather-start(%p0), \
channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}
  %done = bf16[768,128]{1,0} all-gather-done(%start)
  %scattered = bf16[8,128]{1,0} reduce-scatter(%done), channel_id=6, \
replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, to_apply=%add.1
  %alone = f32[64,128]{1,0} all-reduce(%p2), replica_groups={{0},{1}}, to_apply=%add.1
  %zero = s32[]{:T(128)} constant(0)
  %state = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) tuple(%zero, %p2)
  %loop = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) while(%state), \
condition=%outer_condition, body=%outer_body
  %called = f32[64,128]{1,0} custom-call(%p2), custom_call_target="tpu_custom_call"
  ROOT %out = f32[64,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


def flops(program):
    return sum(item.runs * item.flops for item in program.operations())


def test_loops_groups_and_kinds_of_a_tpu_program():
    program = CompiledProgram(TPU, 8)
    assert set(program.collectives()) == {
        Collective("collective-permute", 40 * 4, 2, 64 * 128 * 4, False),  # eight by steps of two
        Collective("all-reduce", 40, 4, 64 * 128 * 4, False),
        Collective("all-gather", 1, 8, 768 * 128 * 2, True),
        Collective("reduce-scatter", 1, 4, 8 * 128 * 2, False),
    }
    assert program.unknown_loops == []


def test_products_written_as_convolutions():
    # Each of four outputs meets one element of its window; the others lie in the padding.
    assert flops(CompiledProgram(TPU, 8)) == 2 * 4096 * 6144 * 4 * 128


ASYNC = """HloModule jit_g, is_scheduled=true

%begin (p: bf16[8,512]) -> (bf16[8,512], bf16[128,512]) {
  %p = bf16[8,512]{1,0} parameter(0)
  %gathered = bf16[128,512]{1,0} all-gather(%p), channel_id=9, \
replica_groups=mesh['axis_0'=16,'axis_1'=8], device_ids=([8,16]T(1,0)) {'axis_0'}, dimensions={0}
  ROOT %t = (bf16[8,512]{1,0}, bf16[128,512]{1,0}) tuple(%p, %gathered)
}

%carry_on (p: bf16[8,512], x: bf16[64,64]) -> bf16[64,64] {
  %p = bf16[8,512]{1,0} parameter(0)
  %x = bf16[64,64]{1,0} parameter(1)
  %again = bf16[128,512]{1,0} all-gather(%p), channel_id=9, \
replica_groups=mesh['axis_0'=16,'axis_1'=8], device_ids=([8,16]T(1,0)) {'axis_0'}, dimensions={0}
  ROOT %y = bf16[64,64]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (p: bf16[8,512], x: bf16[64,64]) -> bf16[64,64] {
  %p = bf16[8,512]{1,0} parameter(0)
  %x = bf16[64,64]{1,0} parameter(1)
  %kernel = bf16[64,64]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", \
backend_config={"config": {
"xprof_metadata":"of several lines"
}}, metadata={op_name="kernel"}
  %start = (bf16[8,512]{1,0}, bf16[128,512]{1,0}) fusion(%p), kind=kCustom, calls=%begin
  ROOT %out = bf16[64,64]{1,0} fusion(%p, %kernel), kind=kOutput, calls=%carry_on
}
"""


def test_a_collective_carried_on_beside_products_counts_once():
    program = CompiledProgram(ASYNC, 128)
    assert program.collectives() == [Collective("all-gather", 1, 16, 128 * 512 * 2, True)]
    assert flops(program) == 2 * 64**3


SPARSECORE = """HloModule jit_h, is_scheduled=true

%elsewhere (p: bf16[8,512]) -> bf16[128,512] {
  %p = bf16[8,512]{1,0} parameter(0)
  ROOT %gathered = bf16[128,512]{1,0} all-gather(%p), channel_id=1, replica_groups=[8,16]<=[128], \
dimensions={0}
}, execution_thread="sparsecore"

ENTRY %main (p: bf16[8,512]) -> bf16[128,512] {
  %p = bf16[8,512]{1,0} parameter(0)
  %start = ((bf16[8,512]{1,0}), bf16[128,512]{1,0}, u32[]{:S(8)}) call-start(%p), \
async_execution_thread="sparsecore", to_apply=%elsewhere
  ROOT %done = bf16[128,512]{1,0} call-done(%start)
}
"""


def test_a_collective_on_another_core_overlaps():
    program = CompiledProgram(SPARSECORE, 128)
    assert program.collectives() == [Collective("all-gather", 1, 16, 128 * 512 * 2, True)]


SLICES = """HloModule jit_s, is_scheduled=true

ENTRY %main (p: f32[14,8,128]) -> f32[14,8,128] {
  %p = f32[14,8,128]{2,1,0:T(8,128)} parameter(0)
  %after-all = token[] after-all()
  %send = (f32[14,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%p, %after-all), channel_id=2, \
is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[14,8,128]{2,1,0:T(8,128)}, u32[], token[]) recv(%sent), channel_id=3, \
is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %came = (f32[14,8,128]{2,1,0:T(8,128)}, token[]) recv-done(%recv), channel_id=3
  ROOT %out = f32[14,8,128]{2,1,0:T(8,128)} get-tuple-element(%came), index=0
}
"""


def test_what_goes_between_slices():
    (item,) = CompiledProgram(SLICES, 16, 4).collectives()
    assert item == Collective("slice-all-reduce", 1, 4, 14 * 8 * 128 * 4, True)
    assert item.wire_bytes == 1.5 * item.result_bytes


def test_groups_that_cannot_be_read_are_an_error():
    text = ASYNC.replace("replica_groups=mesh['axis_0'=16", "replica_groups=lattice['axis_0'=16")
    with pytest.raises(ValueError, match="cannot read the groups of gathered"):
        CompiledProgram(text, 128).collectives()


def test_bytes_on_the_wire():
    megabyte = 10**6
    assert Collective("all-gather", 3, 4, megabyte, True).wire_bytes == 3 * 0.75 * megabyte
    assert Collective("all-reduce", 1, 4, megabyte, True).wire_bytes == 1.5 * megabyte
    assert Collective("reduce-scatter", 1, 4, megabyte, True).wire_bytes == 3 * megabyte
    assert Collective("all-to-all", 1, 4, megabyte, True).wire_bytes == 0.75 * megabyte
    assert Collective("collective-permute", 2, 2, megabyte, True).wire_bytes == 2 * megabyte


def test_a_loop_of_unknown_length_is_told():
    text = TPU.replace("%bound = s32[]{:T(128)} constant(40)", "%bound = s32[] parameter(1)")
    program = CompiledProgram(text, 8)
    assert program.unknown_loops == ["loop"]
    assert Collective("all-reduce", 1, 4, 64 * 128 * 4, False) in program.collectives()


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no entry"):
        CompiledProgram("HloModule nothing\n", 1)


def test_a_program_compiled_here():
    """Five times a product, split over eight devices, and what they sum up."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))

    def f(x, w):
        def body(x, _):
            y = jnp.einsum("bd,df->bf", x, w, out_sharding=jax.P(None, "x"))
            return jnp.einsum("bf,df->bd", y, w, out_sharding=jax.P(None, None)), None

        return jax.lax.scan(body, x, length=5)[0]

    x = jax.ShapeDtypeStruct((256, 512), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P()))
    w_sharding = jax.NamedSharding(mesh, jax.P(None, "x"))
    w = jax.ShapeDtypeStruct((512, 1024), jnp.float32, sharding=w_sharding)
    with jax.set_mesh(mesh):
        program = CompiledProgram(jax.jit(f).lower(x, w).compile().as_text(), 8)
    assert flops(program) == 5 * 2 * 2 * 256 * 512 * 1024 / 8
    assert program.collectives() == [Collective("all-reduce", 5, 8, 256 * 512 * 4, False)]
