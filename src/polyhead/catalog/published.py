"""The fields of published config.json files that bear on attention and size, as they stand there.

The files lie on the Hugging Face Hub under the names given. They were compared with copies in public repositories:

- mlc-llm (python/mlc_llm/model/model_preset.py): LLaMA's, Mistral's, DeepSeek-V2-Lite's, Gemma 2's, GPT-2's, SmolLM2's;
- torchKQI's tests of language models: Qwen2's; tt-metal: Falcon's; PaddleNLP: T5's; Kiln's tests: gpt-oss's;
- Megatron-Bridge's tests: DeepSeek-V2's; for DeepSeek-V3 a copy of DeepSeek-R1's file, which is built alike;
- transformers' config classes, whose defaults they are: BigBird's, and gpt-oss's once more;
- DinoML's survey of DiffLlama's files: DiffLlama's, but for rms_norm_eps, which it does not list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A published model.

    Attributes:
        name: The name to type.
        title: The name to read.
        source: Where the fields come from.
        config: The fields, as JSON.
        sources: Where single figures come from, if that is elsewhere, by the names of `Model`'s attributes.
    """

    name: str
    title: str
    source: str
    config: str
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)


_META = (
    Published(
        name="llama-3-8b",
        title="Llama 3 8B",
        source="config.json of meta-llama/Meta-Llama-3-8B",
        config="""{
            "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "attention_bias": false, "intermediate_size": 14336, "vocab_size": 128256,
            "max_position_embeddings": 8192, "rope_theta": 500000.0, "rope_scaling": null, "rms_norm_eps": 1e-05,
            "tie_word_embeddings": false}""",
    ),
    Published(
        name="llama-3-70b",
        title="Llama 3 70B",
        source="config.json of meta-llama/Meta-Llama-3-70B",
        config="""{
            "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
            "num_key_value_heads": 8, "attention_bias": false, "intermediate_size": 28672, "vocab_size": 128256,
            "max_position_embeddings": 8192, "rope_theta": 500000.0, "rope_scaling": null, "rms_norm_eps": 1e-05,
            "tie_word_embeddings": false}""",
    ),
    Published(
        name="llama-3.1-8b",
        title="Llama 3.1 8B",
        source="config.json of meta-llama/Llama-3.1-8B",
        config="""{
            "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "attention_bias": false, "mlp_bias": false, "intermediate_size": 14336,
            "vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 500000.0,
            "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 8192, "rope_type": "llama3"},
            "rms_norm_eps": 1e-05, "tie_word_embeddings": false}""",
    ),
)

_MISTRAL = (
    Published(
        name="mistral-7b-v0.1",
        title="Mistral 7B v0.1",
        source="config.json of mistralai/Mistral-7B-v0.1",
        config="""{
            "model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "sliding_window": 4096, "intermediate_size": 14336, "vocab_size": 32000,
            "max_position_embeddings": 32768, "rope_theta": 10000.0, "rms_norm_eps": 1e-05,
            "tie_word_embeddings": false}""",
    ),
    Published(
        name="mistral-7b-v0.3",
        title="Mistral 7B v0.3",
        source="config.json of mistralai/Mistral-7B-v0.3",
        config="""{
            "model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "sliding_window": null, "intermediate_size": 14336, "vocab_size": 32768,
            "max_position_embeddings": 32768, "rope_theta": 1000000.0, "rms_norm_eps": 1e-05,
            "tie_word_embeddings": false}""",
    ),
    Published(
        name="mixtral-8x7b",
        title="Mixtral 8x7B",
        source="config.json of mistralai/Mixtral-8x7B-v0.1",
        config="""{
            "model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "sliding_window": null, "intermediate_size": 14336, "num_local_experts": 8,
            "num_experts_per_tok": 2, "vocab_size": 32000, "max_position_embeddings": 32768,
            "rope_theta": 1000000.0, "rms_norm_eps": 1e-05, "tie_word_embeddings": false}""",
    ),
)

_QWEN = (
    Published(
        name="qwen2-7b",
        title="Qwen2 7B",
        source="config.json of Qwen/Qwen2-7B",
        config="""{
            "model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4, "use_sliding_window": false, "sliding_window": 131072,
            "max_window_layers": 28, "intermediate_size": 18944, "vocab_size": 152064,
            "max_position_embeddings": 131072, "rope_theta": 1000000.0, "rms_norm_eps": 1e-06,
            "tie_word_embeddings": false}""",
    ),
    Published(
        name="qwen2-72b",
        title="Qwen2 72B",
        source="config.json of Qwen/Qwen2-72B",
        config="""{
            "model_type": "qwen2", "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
            "num_key_value_heads": 8, "use_sliding_window": false, "sliding_window": 131072,
            "max_window_layers": 80, "intermediate_size": 29568, "vocab_size": 152064,
            "max_position_embeddings": 131072, "rope_theta": 1000000.0, "rms_norm_eps": 1e-05,
            "tie_word_embeddings": false}""",
    ),
)

_DEEPSEEK = (
    Published(
        name="deepseek-v2",
        title="DeepSeek-V2",
        source="config.json of deepseek-ai/DeepSeek-V2",
        config="""{
            "model_type": "deepseek_v2", "hidden_size": 5120, "num_hidden_layers": 60, "num_attention_heads": 128,
            "num_key_value_heads": 128, "attention_bias": false, "q_lora_rank": 1536, "kv_lora_rank": 512,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 12288,
            "first_k_dense_replace": 1, "moe_layer_freq": 1, "moe_intermediate_size": 1536,
            "n_routed_experts": 160, "n_shared_experts": 2, "num_experts_per_tok": 6, "vocab_size": 102400,
            "max_position_embeddings": 163840, "rope_theta": 10000,
            "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
                             "original_max_position_embeddings": 4096, "type": "yarn"},
            "rms_norm_eps": 1e-06, "tie_word_embeddings": false}""",
    ),
    Published(
        name="deepseek-v2-lite",
        title="DeepSeek-V2-Lite",
        source="config.json of deepseek-ai/DeepSeek-V2-Lite",
        config="""{
            "model_type": "deepseek_v2", "hidden_size": 2048, "num_hidden_layers": 27, "num_attention_heads": 16,
            "num_key_value_heads": 16, "attention_bias": false, "q_lora_rank": null, "kv_lora_rank": 512,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 10944,
            "first_k_dense_replace": 1, "moe_layer_freq": 1, "moe_intermediate_size": 1408,
            "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "vocab_size": 102400,
            "max_position_embeddings": 163840, "rope_theta": 10000,
            "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
                             "original_max_position_embeddings": 4096, "type": "yarn"},
            "rms_norm_eps": 1e-06, "tie_word_embeddings": false}""",
    ),
    Published(
        name="deepseek-v3",
        title="DeepSeek-V3",
        source="config.json of deepseek-ai/DeepSeek-V3",
        config="""{
            "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128,
            "num_key_value_heads": 128, "attention_bias": false, "q_lora_rank": 1536, "kv_lora_rank": 512,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 18432,
            "first_k_dense_replace": 3, "moe_layer_freq": 1, "moe_intermediate_size": 2048,
            "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
            "num_nextn_predict_layers": 1, "vocab_size": 129280, "max_position_embeddings": 163840,
            "rope_theta": 10000,
            "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                             "original_max_position_embeddings": 4096, "type": "yarn"},
            "rms_norm_eps": 1e-06, "tie_word_embeddings": false}""",
    ),
)

_GOOGLE = (
    Published(
        name="gemma-2-2b",
        title="Gemma 2 2B",
        source="config.json of google/gemma-2-2b",
        config="""{
            "model_type": "gemma2", "hidden_size": 2304, "num_hidden_layers": 26, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 256, "attention_bias": false, "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": 50.0, "sliding_window": 4096, "intermediate_size": 9216,
            "vocab_size": 256000, "max_position_embeddings": 8192, "rope_theta": 10000.0,
            "rms_norm_eps": 1e-06}""",
    ),
    Published(
        name="gemma-2-9b",
        title="Gemma 2 9B",
        source="config.json of google/gemma-2-9b",
        config="""{
            "model_type": "gemma2", "hidden_size": 3584, "num_hidden_layers": 42, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 256, "attention_bias": false, "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": 50.0, "sliding_window": 4096, "intermediate_size": 14336,
            "vocab_size": 256000, "max_position_embeddings": 8192, "rope_theta": 10000.0,
            "rms_norm_eps": 1e-06}""",
    ),
    Published(
        name="gemma-2-27b",
        title="Gemma 2 27B",
        source="config.json of google/gemma-2-27b",
        config="""{
            "model_type": "gemma2", "hidden_size": 4608, "num_hidden_layers": 46, "num_attention_heads": 32,
            "num_key_value_heads": 16, "head_dim": 128, "attention_bias": false, "query_pre_attn_scalar": 144,
            "attn_logit_softcapping": 50.0, "sliding_window": 4096, "intermediate_size": 36864,
            "vocab_size": 256000, "max_position_embeddings": 8192, "rope_theta": 10000.0,
            "rms_norm_eps": 1e-06}""",
    ),
    Published(
        name="t5-base",
        title="T5 Base",
        source="config.json of google-t5/t5-base",
        config="""{
            "model_type": "t5", "is_encoder_decoder": true, "d_model": 768, "d_kv": 64, "d_ff": 3072,
            "num_layers": 12, "num_heads": 12, "relative_attention_num_buckets": 32, "n_positions": 512,
            "layer_norm_epsilon": 1e-06, "vocab_size": 32128}""",
    ),
    # BigBirdConfig's defaults, which transformers documents as this model's
    Published(
        name="bigbird-base",
        title="BigBird RoBERTa Base",
        source="config.json of google/bigbird-roberta-base",
        config="""{
            "model_type": "big_bird", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "attention_type": "block_sparse", "block_size": 64, "num_random_blocks": 3, "use_bias": true,
            "intermediate_size": 3072, "vocab_size": 50358, "max_position_embeddings": 4096,
            "type_vocab_size": 2, "layer_norm_eps": 1e-12}""",
    ),
)

_OPENAI = (
    Published(
        name="gpt2",
        title="GPT-2",
        source="config.json of openai-community/gpt2",
        config="""{
            "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "n_ctx": 1024,
            "vocab_size": 50257, "layer_norm_epsilon": 1e-05}""",
    ),
    Published(
        name="gpt-oss-120b",
        title="gpt-oss 120B",
        source="config.json of openai/gpt-oss-120b",
        # the file lists layer_types, which alternate as they do where it lists none
        config="""{
            "model_type": "gpt_oss", "hidden_size": 2880, "num_hidden_layers": 36, "num_attention_heads": 64,
            "num_key_value_heads": 8, "head_dim": 64, "attention_bias": true, "sliding_window": 128,
            "intermediate_size": 2880, "num_local_experts": 128, "num_experts_per_tok": 4, "vocab_size": 201088,
            "max_position_embeddings": 131072, "rope_theta": 150000,
            "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "rope_type": "yarn",
                             "original_max_position_embeddings": 4096, "truncate": false},
            "rms_norm_eps": 1e-05, "tie_word_embeddings": false}""",
    ),
)

_OTHERS = (
    Published(
        name="falcon-7b",
        title="Falcon 7B",
        source="config.json of tiiuae/falcon-7b",
        config="""{
            "model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
            "num_kv_heads": 71, "multi_query": true, "new_decoder_architecture": false, "parallel_attn": true,
            "alibi": false, "bias": false, "vocab_size": 65024, "layer_norm_epsilon": 1e-05}""",
        sources={"max_seq_len": "the default of transformers' FalconConfig, which the file relies on"},
    ),
    Published(
        name="bloom-7b1",
        title="BLOOM 7B1",
        source="model card of bigscience/bloom-7b1",
        config="""{
            "model_type": "bloom", "hidden_size": 4096, "n_layer": 30, "n_head": 32, "seq_length": 2048,
            "vocab_size": 250880}""",
    ),
    Published(
        name="diffllama-1b",
        title="DiffLlama 1B",
        source="config.json of kajuma/DiffLlama-1B",
        config="""{
            "model_type": "diffllama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 64, "attention_bias": false, "intermediate_size": 8192,
            "vocab_size": 102400, "max_position_embeddings": 8192, "rope_theta": 10000.0, "rms_norm_eps": 1e-05,
            "tie_word_embeddings": false}""",
        sources={
            "layers": "config.json of kajuma/DiffLlama-1B, "
            "but for rms_norm_eps, which is the default of transformers' DiffLlamaConfig"
        },
    ),
    Published(
        name="smollm2-135m",
        title="SmolLM2 135M",
        source="config.json of HuggingFaceTB/SmolLM2-135M",
        config="""{
            "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
            "num_key_value_heads": 3, "attention_bias": false, "mlp_bias": false, "intermediate_size": 1536,
            "vocab_size": 49152, "max_position_embeddings": 8192, "rope_theta": 100000, "rope_scaling": null,
            "rms_norm_eps": 1e-05, "tie_word_embeddings": true}""",
    ),
)

PUBLISHED: tuple[Published, ...] = (*_META, *_MISTRAL, *_QWEN, *_DEEPSEEK, *_GOOGLE, *_OPENAI, *_OTHERS)
