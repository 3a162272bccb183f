"""What vLLM's configuration must be for this model."""

from __future__ import annotations

from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from collamo.errors import UsageError

#: How vLLM calls the way in which `PromptReader` reads prompts.
MODE = "collamo"


class Settings(VerifyAndUpdateConfig):
    """Chooses the reader of prompts, and refuses LoRA beside the model."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """Let `PromptReader` read the prompts."""
        if model_config.tokenizer_mode == "auto":
            model_config.tokenizer_mode = MODE

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Refuse LoRA beside the model.

        Raises
        ------
        UsageError
            Where it is enabled.
        """
        if vllm_config.lora_config is not None:
            raise UsageError(
                "LoRA is served merged: write one model with `collamo merge ADAPTER OUT`, and "
                "leave enable_lora out"
            )
