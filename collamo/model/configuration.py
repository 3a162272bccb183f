"""What a CoLLaMo model is made of: one configuration per part, one sentence per field.

"paper" is arXiv 2601.12256; what it leaves open is marked "our choice, because …". transformers
accepts misspelt keys silently, so user input goes through `CollamoConfig.from_overrides`, which
does not.
"""

# No "from __future__ import annotations" here: `strict` checks values against the types of the
# fields as they stand, and skips those that are strings.
import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from collamo.data.batch import MODALITIES
from collamo.errors import UsageError, suggest
from collamo.model.stub import AUTO_MAP, OpenedByStub, write_stub

#: Stands for a molecule in a prompt; the soft tokens take its place.
MOL_TOKEN = "<mol>"

#: What stands for a molecule in a prompt in the end; see `CollamoConfig`.
MoleculesAs = Literal["soft_tokens", "smiles"]

#: The causal language model of the paper, by its hub name.
LLAMA2_7B = "meta-llama/Llama-2-7b-chat-hf"


@strict
class SelfiesEncoderConfig(PreTrainedConfig):
    """SELFIES token encoder: token embedding + position embedding (paper: "SELFIES embedding").

    Parameters
    ----------
    vocab_size
        Rows of the token table: [PAD], [UNK] and the tokens of the vocabulary. Set from it.
    hidden_size
        Channels per token. Our choice, because 256 is ample for some hundred distinct tokens.
    max_positions
        Tokens with a position of their own; later ones share the last. Our choice, because
        512 tokens cover all but freak molecules and a shared position loses less than a cut.
    dropout
        Probability of zeroing a channel while training. Our choice: the usual 0.1.
    """

    model_type = "collamo_selfies"
    base_config_key = "selfies_config"

    vocab_size: int = 128
    hidden_size: int = 256
    max_positions: int = 512
    dropout: float | int = 0.1


@strict
class GinConfig(PreTrainedConfig):
    """GIN graph encoder.

    Parameters
    ----------
    flavour
        "ogb", the form over OGB's atom and bond features (MoleculeSTM's release), or
        "pretrain-gnns", Hu et al.'s, over element, chirality, bond type and bond direction.
    num_layers
        Message passing rounds; an atom sees this many bonds far. 5, as MoleculeSTM's release.
    hidden_size
        Channels per atom. 300, as MoleculeSTM's release.
    dropout
        Probability of zeroing a channel after each round while training. Our choice: 0, because
        the published encoder is used frozen.
    """

    model_type = "collamo_gin"
    base_config_key = "gin_config"

    flavour: Literal["ogb", "pretrain-gnns"] = "ogb"
    num_layers: int = 5
    hidden_size: int = 300
    dropout: float | int = 0.0


@strict
class UniMolConfig(PreTrainedConfig):
    """Uni-Mol conformer encoder; the defaults are those of its release without hydrogens.

    Parameters
    ----------
    vocab_size
        30 dictionary tokens and [MASK]; pair types are vocab_size².
    num_layers
        Transformer layers (release: 15).
    hidden_size
        Channels per atom (release: 512).
    intermediate_size
        Channels inside the feed-forward block (release: 2048).
    num_heads
        Attention heads, also the width of the pair representation (release: 64).
    num_gaussians
        Gaussians K that expand one distance (release: 128).
    min_sigma
        Floor under |σ|, in the units of the scaled distance (release: 1e-5).
    dropout
        Probability of zeroing a channel or an attention weight while training (release: 0.1).
    """

    model_type = "collamo_unimol"
    base_config_key = "unimol_config"

    vocab_size: int = 31
    num_layers: int = 15
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_heads: int = 64
    num_gaussians: int = 128
    min_sigma: float = 1e-5
    dropout: float | int = 0.1


@strict
class ProjectorConfig(PreTrainedConfig):
    """Co-Proj, the relation-aware modality-collaborative projector.

    Parameters
    ----------
    num_layers
        Co-Attn layers L. Not in the paper; our choice: 5, because GIN's 5 levels then meet one
        layer each.
    hidden_size
        Common width C of the three branches and the queries. Our choice: 512, the width of the
        widest encoder, so that nothing is squeezed on entry.
    num_heads
        Attention heads H. Our choice: 8, because head width 64 suits every attention kernel.
    intermediate_size
        Channels inside the feed-forward blocks. Our choice: 4 × hidden_size, as is usual.
    num_query_tokens
        Learned queries b, the soft tokens per molecule ("fixed" in the paper, no number). Our
        choice: 32, as in Q-Former projectors.
    hop_buckets
        Columns S of the Φ2d table; paths of S-2 bonds and more share one, unconnected atoms have
        one. Our choice: 64, because only 0.7 % of ChEBI-20 molecules have a longer path.
    num_gaussians
        Gaussians K of Φ3d. Our choice: 128, as in Graphormer-3D, Transformer-M and Uni-Mol.
    radial_head
        How K Gaussians become H biases: an "mlp" (as Transformer-M) or one "linear" map. Our
        choice: "mlp", the published form.
    min_sigma
        Floor under |σ| in Å. Our choice: 1e-2 as in Transformer-M, because the paper warns of NaN
        from σ and 1e-5 nearly overflows half precision.
    share_relation_bias
        One Φ2d and one Φ3d for all layers and both atom branches (True), or each attention its own.
        Our choice: True, as in Graphormer and Transformer-M.
    collaboration
        Co-Proj itself. False, the ablation of the paper's Tables 5 and 7: no Φ, and each modality
        is read by a third of the queries of its own. Our choice of what stands against Co-Proj: the
        paper's is not known to us.
    phi2d, phi3d
        Whether attention over atoms has the bias of hops, and that of distances (paper: both;
        Table 6 leaves them out).
    multi_level
        Layer l also receives level l of the encoders. Our choice: True, because the abstract calls
        the projector multi-level.
    zero_attention
        A zero key and a zero value join the tokens of the cross-attention. Our choice: True,
        because a plain softmax average cannot count, while with the extra key the result grows
        with the number of matching atoms.
    sinks
        Whether attention can count everywhere: each head over atoms has a sink, a learned logit
        whose value is zero, and the logit of the cross-attention's zero key is learned, a head each
        (without `sinks` it is 0). Our choice: False, because the paper's softmax is plain; the
        demo's recipe has them, because without them no trained model read Φ2d or Φ3d.
    modality_dropout
        Probability that training drops a present modality of a molecule; one always stays. The
        paper gives no rate; our choice: 0.2.
    dropout
        Probability of zeroing a channel of a block's output while training. Our choice: 0.1.
    """

    model_type = "collamo_projector"
    base_config_key = "projector_config"

    num_layers: int = 5
    hidden_size: int = 512
    num_heads: int = 8
    intermediate_size: int = 2048
    num_query_tokens: int = 32
    hop_buckets: int = 64
    num_gaussians: int = 128
    radial_head: Literal["mlp", "linear"] = "mlp"
    min_sigma: float = 1e-2
    share_relation_bias: bool = True
    collaboration: bool = True
    phi2d: bool = True
    phi3d: bool = True
    multi_level: bool = True
    zero_attention: bool = True
    sinks: bool = False
    modality_dropout: float | int = 0.2
    dropout: float | int = 0.1


@strict
class CollamoConfig(OpenedByStub, PreTrainedConfig):
    """A causal language model, three molecule encoders and the projector between them.

    Parameters
    ----------
    text_config
        Configuration of the language model: any causal LM of transformers (paper: LLaMA-2-7B-chat).
    selfies_config, gin_config, unimol_config
        The 1D, 2D and 3D encoder (paper: SELFIES embedding, GIN, Uni-Mol).
    projector_config
        Co-Proj.
    modalities
        Which of "1d", "2d" and "3d" the model reads at all, in training and after; a molecule that
        has none of them gets soft tokens of zero. Paper: all; its Table 1 also has each alone.
    molecules_as
        What the language model is given for a molecule: "soft_tokens", or "smiles", its SMILES as
        text. Ours: the latter is the baseline to compare with, and reads neither encoders nor
        projector.
    mol_token_id
        Id of `<mol>`, the placeholder that soft tokens replace; -1 until a tokenizer sets it.
    lm_head_bias
        Whether the language model's output layer has a bias (LLaMA: no).
    initializer_range
        Standard deviation of freshly drawn linear weights. Our choice: 0.02, as in LLaMA.
    sources
        Where pre-trained weights came from: the language model's name, and of a GGUF its file,
        SHA-256 and licence; file and SHA-256 of published encoders. Written by `build_model`.

    Examples
    --------
    >>> CollamoConfig.from_overrides("tiny", {"projector_config.num_layers": 2})  # doctest: +SKIP
    """

    model_type = "collamo"
    sub_configs = {  # noqa: RUF012  transformers reads this plain class attribute
        "text_config": AutoConfig,
        "selfies_config": SelfiesEncoderConfig,
        "gin_config": GinConfig,
        "unimol_config": UniMolConfig,
        "projector_config": ProjectorConfig,
    }

    if TYPE_CHECKING:  # what they are once `__post_init__` has run
        text_config: PreTrainedConfig = PreTrainedConfig()
        selfies_config: SelfiesEncoderConfig = SelfiesEncoderConfig()
        gin_config: GinConfig = GinConfig()
        unimol_config: UniMolConfig = UniMolConfig()
        projector_config: ProjectorConfig = ProjectorConfig()
    else:  # what `strict` lets a caller give
        text_config: dict | PreTrainedConfig | None = None
        selfies_config: dict | PreTrainedConfig | None = None
        gin_config: dict | PreTrainedConfig | None = None
        unimol_config: dict | PreTrainedConfig | None = None
        projector_config: dict | PreTrainedConfig | None = None
    modalities: list[str] | tuple[str, ...] = MODALITIES
    molecules_as: MoleculesAs = "soft_tokens"
    mol_token_id: int = -1
    lm_head_bias: bool = False
    initializer_range: float = 0.02
    sources: dict | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        """Turn dictionaries into configurations; an absent one gets its defaults."""
        for key, config_class in self.sub_configs.items():
            setattr(self, key, _sub_config(getattr(self, key), config_class))
        unknown = [m for m in self.modalities if m not in MODALITIES]
        if unknown or not self.modalities:
            raise ValueError(
                f"modalities {list(self.modalities)} must be one or more of {', '.join(MODALITIES)}"
            )
        # The language model decides whether its output layer is its embedding table.
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        super().__post_init__(**kwargs)

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs) -> None:
        """As the base class, with the stub beside it that ``trust_remote_code=True`` opens."""
        os.makedirs(save_directory, exist_ok=True)
        write_stub(save_directory)
        self.auto_map = AUTO_MAP
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    @classmethod
    def from_overrides(
        cls,
        preset: str = "llama2-7b",
        overrides: Mapping[str, Any] | None = None,
        text_config: PreTrainedConfig | None = None,
    ) -> "CollamoConfig":
        """Build a configuration from a preset and checked overrides.

        Parameters
        ----------
        preset
            "llama2-7b" (the paper's sizes) or "tiny" (trains on two CPU cores).
        overrides
            Nested (``{"projector_config": {"num_layers": 2}}``) or dotted
            (``{"projector_config.num_layers": 2}``) field values.
        text_config
            The language model's own configuration, if it is not the preset's.

        Raises
        ------
        UsageError
            For an unknown preset or key, with the closest known name, and for a value of a wrong
            type.
        """
        if preset not in PRESETS:
            known = ", ".join(PRESETS)
            raise UsageError(f"preset '{preset}' is not one of {known}{suggest(preset, PRESETS)}")
        values: dict[str, Any] = {key: dict(part) for key, part in PRESETS[preset].items()}
        if text_config is not None:
            values["text_config"] = text_config
        for key, value in nested(overrides or {}).items():
            _check_key(key, cls, "")
            if key in cls.sub_configs and isinstance(value, Mapping):
                values[key] = _merged(values.get(key, {}), value, key, cls.sub_configs[key])
            else:
                values[key] = value
        try:
            return cls(**values)
        except (StrictDataclassError, TypeError, ValueError) as error:
            raise UsageError(f"model configuration: {' '.join(str(error).split())}") from error


def _sub_config(value, config_class) -> PreTrainedConfig:
    """Return `value` as a configuration; a dictionary for the language model names its type."""
    if isinstance(value, PreTrainedConfig):
        return value
    value = dict(value or {})
    if config_class is AutoConfig:
        return AutoConfig.for_model(value.pop("model_type", "llama"), **value)
    value.pop("model_type", None)
    return config_class(**value)


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with dotted keys folded into nested dictionaries."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        head, _, tail = key.partition(".")
        if not tail:
            out[head] = {**out.get(head, {}), **value} if isinstance(value, Mapping) else value
        else:
            out[head] = {**out.get(head, {}), tail: value}
    return out


def _known_keys(config_class) -> set[str]:
    """Fields a user may set: those this package declares, not transformers' bookkeeping."""
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    return {field.name for field in dataclasses.fields(config_class)} - inherited


def _check_key(key: str, config_class, place: str) -> None:
    known = _known_keys(config_class)
    if key not in known:
        raise UsageError(
            f"unknown model configuration key '{place}{key}'{suggest(key, known)}; "
            f"known: {', '.join(sorted(known))}"
        )


def _merged(base, values: Mapping[str, Any], place: str, config_class):
    """Return `base` updated by `values`, keys checked; the language model's fields are its own."""
    if config_class is AutoConfig:
        base = base.to_dict() if isinstance(base, PreTrainedConfig) else dict(base)
        known = AutoConfig.for_model(base.get("model_type", "llama")).to_dict()
        for key in values:
            if key not in known and key != "model_type":
                raise UsageError(
                    f"unknown model configuration key '{place}.{key}'{suggest(key, known)}"
                )
    else:
        for key in values:
            _check_key(key, config_class, f"{place}.")
    return {**base, **values}


#: Named starting points. The tiny sizes are our choice, because prepare, three trainings and an
#: evaluation have to fit ten minutes on two CPU cores.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "llama2-7b": {
        "text_config": {
            "model_type": "llama",
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
        },
    },
    "tiny": {
        "text_config": {"model_type": "llama"},
        "selfies_config": {"hidden_size": 96, "max_positions": 256, "dropout": 0.0},
        "gin_config": {"num_layers": 4, "hidden_size": 96},
        "unimol_config": {
            "num_layers": 3,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 8,
            "num_gaussians": 32,
            "min_sigma": 1e-2,
            "dropout": 0.0,
        },
        "projector_config": {
            "num_layers": 2,
            "hidden_size": 96,
            "num_heads": 4,
            "intermediate_size": 192,
            "num_query_tokens": 8,
            "num_gaussians": 32,
            "radial_head": "linear",
            "dropout": 0.0,
        },
    },
}
