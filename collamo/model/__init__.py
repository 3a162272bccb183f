"""The molecular language model, on transformers' own classes.

Importing this package registers the model with transformers' Auto classes.
"""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from collamo.model.build import build_model
from collamo.model.checkpoints import load_checkpoint
from collamo.model.configuration import (
    CollamoConfig,
    GinConfig,
    ProjectorConfig,
    SelfiesEncoderConfig,
    UniMolConfig,
)
from collamo.model.feature_extractor import MoleculeFeatureExtractor
from collamo.model.modeling import (
    CollamoForConditionalGeneration,
    CollamoModel,
    CollamoPreTrainedModel,
)
from collamo.model.processor import CollamoProcessor
from collamo.model.published_weights import convert_encoder, load_gin, load_unimol
from collamo.model.selfies_vocabulary import SelfiesVocabulary
from collamo.model.tiny import tiny_llama_config, train_tokenizer

__all__ = [
    "CollamoConfig",
    "CollamoForConditionalGeneration",
    "CollamoModel",
    "CollamoPreTrainedModel",
    "CollamoProcessor",
    "GinConfig",
    "MoleculeFeatureExtractor",
    "ProjectorConfig",
    "SelfiesEncoderConfig",
    "SelfiesVocabulary",
    "UniMolConfig",
    "build_model",
    "convert_encoder",
    "load_checkpoint",
    "load_gin",
    "load_unimol",
    "tiny_llama_config",
    "train_tokenizer",
]

AutoConfig.register("collamo", CollamoConfig, exist_ok=True)
AutoModel.register(CollamoConfig, CollamoModel, exist_ok=True)
AutoModelForMultimodalLM.register(CollamoConfig, CollamoForConditionalGeneration, exist_ok=True)
AutoFeatureExtractor.register(CollamoConfig, MoleculeFeatureExtractor, exist_ok=True)
AutoProcessor.register(CollamoConfig, CollamoProcessor, exist_ok=True)
