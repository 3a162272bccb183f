"""The plugin by which vLLM opens a whole CoLLaMo, molecules and all.

vLLM finds `register` under the entry point ``collamo`` of ``vllm.general_plugins``: nobody has to
import it.
"""

#: The model's name in a checkpoint's config.json.
ARCHITECTURE = "CollamoForConditionalGeneration"


def register() -> None:
    """Tell vLLM of the model; what it needs is imported when one is opened.

    Called in every process of vLLM, whatever is served there, and more than once in some.
    """
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry

    import collamo.model  # noqa: F401  # transformers' AutoConfig knows the configuration from here
    from collamo.inference.vllm_plugin.settings import MODE, Settings

    if MODE in RENDERER_REGISTRY.renderers:
        return
    ModelRegistry.register_model(ARCHITECTURE, f"{__name__}.model:ServedCollamo")
    MODELS_CONFIG_MAP[ARCHITECTURE] = Settings
    RENDERER_REGISTRY.register(MODE, f"{__name__}.renderer", "PromptReader")
    TokenizerRegistry.register(MODE, "vllm.tokenizers.hf", "CachedHfTokenizer")
