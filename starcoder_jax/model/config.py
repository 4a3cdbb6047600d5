"""The one description of a StarCoder-family architecture."""

import dataclasses
import math

POSITIONS = ("learned", "rope", "alibi")
ACTIVATIONS = ("gelu_tanh", "gelu_erf")
# What the backward pass of a layer finds in memory. "none" saves every intermediate value,
# "full" saves only the layer's input, "dots" what attention and matrix products with weights made.
REMATERIALIZATION = ("none", "full", "dots")
# "xla" runs anywhere; "splash" on TPUs and "cudnn" on NVIDIA GPUs are kernels with limits, which
# they name when asked for more.
ATTENTION_BACKENDS = ("reference", "xla", "splash", "cudnn")
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Architecture of a decoder; the members of the family differ in nothing else.

    All of them are pre-LayerNorm transformers with biases everywhere but in the output head and an
    MLP of two matrices. Field values of the published models are in the recipes under gin/model.

    Raises:
        ValueError: a field has an unknown value or two fields contradict each other.
    """

    vocab_size: int  # rows of the embedding; at least the tokenizer's size
    num_layers: int
    embed_dim: int
    num_heads: int  # query heads
    num_kv_heads: int  # 1: multi-query, num_heads: multi-head, between: grouped-query attention
    mlp_dim: int
    max_length: int  # context in tokens; with learned positions also the rows of their table
    positions: str = "rope"  # "learned" (absolute), "rope" (rotary) or "alibi" (linear biases)
    rope_theta: float = 10_000.0  # base of the rotary frequencies
    sliding_window: int | None = None  # keys a query sees, itself included; None: all before it
    activation: str = "gelu_tanh"  # or "gelu_erf", without the approximation by tanh
    tied_head: bool = True  # output head = transposed embedding
    embedding_norm: bool = False  # LayerNorm right after the embedding (BLOOM)
    norm_epsilon: float = 1e-5
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    dtype: str = "bfloat16"  # of activations and matrix products; parameters have their own
    rematerialization: str = "none"  # "dots" keeps less for the backward pass, "full" least
    attention_backend: str = "xla"  # "splash" on TPUs, "cudnn" on GPUs, "reference" to compare with

    def __post_init__(self):
        _check_choice("positions", self.positions, POSITIONS)
        _check_choice("activation", self.activation, ACTIVATIONS)
        _check_choice("rematerialization", self.rematerialization, REMATERIALIZATION)
        _check_choice("attention_backend", self.attention_backend, ATTENTION_BACKENDS)
        _check_choice("dtype", self.dtype, DTYPES)
        for name in ("vocab_size", "num_layers", "embed_dim", "num_heads", "mlp_dim", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"model.embed_dim={self.embed_dim} does not divide into "
                f"model.num_heads={self.num_heads}"
            )
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_heads={self.num_heads} is no multiple of "
                f"model.num_kv_heads={self.num_kv_heads}"
            )
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head size, not {self.head_dim}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(
                f"model.sliding_window is {self.sliding_window}; use None for no window"
            )
        for name in ("embedding_dropout", "attention_dropout", "residual_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be in [0, 1)")

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.embed_dim // self.num_heads

    @property
    def query_groups(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def init_std(self) -> float:
        """Standard deviation of embeddings and input projections: 1/sqrt(embed_dim).

        The value that every StarCoder run passed to `--init-method-std` in its Megatron script.
        BLOOM's was sqrt(1 / (3 * embed_dim)).
        """
        return 1 / math.sqrt(self.embed_dim)

    @property
    def residual_init_std(self) -> float:
        """Of the projections that write to the residual stream: init_std / sqrt(2 * num_layers)."""
        return self.init_std / math.sqrt(2 * self.num_layers)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"model.{name} is {value!r}; it must be one of {', '.join(choices)}")
