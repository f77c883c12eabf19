"""Models that people train, as they come: served by rules, exact, and no false alarm.

All are tiny and have random weights.

Shapes: ``B`` examples.
"""

import warnings

import peft
import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- torch's own convention

from dp.per_sample import Engine
from dp.per_sample._isolation.verification import Verification


B = 5
pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:::(?!dp)"),
]

COMMON = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
WORDS = {**COMMON, "vocab_size": 50, "max_position_embeddings": 16}
STILL = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
GPT2 = hf.GPT2Config(
    n_embd=16,
    n_layer=2,
    n_head=2,
    vocab_size=50,
    n_positions=16,
    resid_pdrop=0,
    embd_pdrop=0,
    attn_pdrop=0,
)
LLAMA = hf.LlamaConfig(**WORDS, num_key_value_heads=1)
T5 = hf.T5Config(
    d_model=16,
    d_kv=8,
    d_ff=24,
    num_layers=2,
    num_heads=2,
    vocab_size=50,
    dropout_rate=0,
    decoder_start_token_id=0,
)
BART = hf.BartConfig(
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=24,
    decoder_ffn_dim=24,
    vocab_size=50,
    max_position_embeddings=16,
    dropout=0,
    attention_dropout=0,
)
WAV2VEC2 = hf.Wav2Vec2Config(
    **COMMON,
    conv_dim=(4, 4),
    conv_stride=(2, 2),
    conv_kernel=(3, 3),
    num_feat_extract_layers=2,
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
    hidden_dropout=0,
    attention_dropout=0,
    feat_proj_dropout=0,
    activation_dropout=0,
    layerdrop=0,
    mask_time_prob=0,
    classifier_proj_size=8,
)


def words(model):
    tokens = torch.randint(0, 50, (B, 6))
    return model, model.double().train()(input_ids=tokens).logits


def masked_words(model):
    tokens = torch.randint(0, 50, (B, 6))
    seen = torch.ones(B, 6).tril(2)
    model.double().train()
    return model, model(input_ids=tokens, attention_mask=seen).logits


def translated(model):
    source, target = torch.randint(3, 50, (2, B, 6))
    model.double().train()
    return model, model(input_ids=source, decoder_input_ids=target).logits


def pictures(model, size=16):
    return model, model.double().train()(torch.randn(B, 3, size, size)).logits


def adapted(model, adapter):
    model = peft.get_peft_model(model, adapter)
    for name, values in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(values)
    return words(model)


class ResNet(nn.Module):
    """Blocks of convolutions with shortcuts, as in torchvision, with group norms."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.first = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(2, 8) for _ in range(2))
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(4, 8, 1, stride=2)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = F.max_pool2d(self.stem(x), 2)
        y = self.norms[1](self.second(self.norms[0](self.first(x)).relu_()))
        return self.head((y + self.shortcut(x)).relu_().mean((2, 3)))


class UNet(nn.Module):
    """Down, up, and a shortcut between the two."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.InstanceNorm2d(4, affine=True)
        self.deep = nn.Conv2d(4, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        y = F.silu(self.norm(self.down(x)))
        deep = F.dropout2d(self.deep(F.avg_pool2d(y, 2)), 0.3)
        return self.out(torch.cat([y, self.up(deep)], 1))


class Tagger(nn.Module):
    """Words to tags, in both directions."""

    def __init__(self, recurrent):
        super().__init__()
        self.words = nn.Embedding(50, 6, padding_idx=0)
        self.recurrent = recurrent(6, 5, batch_first=True, bidirectional=True)
        self.tags = nn.Linear(10, 4)

    def forward(self, x):
        return self.tags(self.recurrent(self.words(x))[0])


class GraphNet(nn.Module):
    """Two graph convolutions on padded graphs, and a mean over the nodes there are."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 8)
        self.own = nn.Linear(3, 8, bias=False)

    def forward(self, x):
        there = (torch.arange(4) < torch.tensor([4, 3, 2, 4, 1])[:, None]).double()
        adjacency = there[:, :, None] * there[:, None]
        adjacency = adjacency / adjacency.sum(2, keepdim=True).clamp(min=1)
        h = F.elu(adjacency @ self.first(x) + self.own(x))
        h = adjacency @ self.second(h) * there[..., None]
        return h.sum(1) / there.sum(1, keepdim=True)


def applied(model, x):
    return model, model.double()(x)


MODELS = {
    "ALBERT": lambda: words(
        hf.AlbertForSequenceClassification(
            hf.AlbertConfig(
                **WORDS, **STILL, embedding_size=8, classifier_dropout_prob=0
            )
        )
    ),
    "BART": lambda: translated(hf.BartForConditionalGeneration(BART)),
    "BEiT": lambda: pictures(
        hf.BeitForImageClassification(
            hf.BeitConfig(
                **COMMON,
                **STILL,
                image_size=16,
                patch_size=4,
                use_relative_position_bias=True,
                drop_path_rate=0,
            )
        )
    ),
    "BERT": lambda: masked_words(
        hf.BertForSequenceClassification(hf.BertConfig(**WORDS, **STILL))
    ),
    "BERT, masked words": lambda: words(
        hf.BertForMaskedLM(hf.BertConfig(**WORDS, **STILL))
    ),
    "ConvNeXt": lambda: pictures(
        hf.ConvNextForImageClassification(
            hf.ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2)
        )
    ),
    "DeBERTa": lambda: words(
        hf.DebertaV2ForSequenceClassification(
            hf.DebertaV2Config(
                **WORDS, **STILL, relative_attention=True, pos_att_type=["p2c", "c2p"]
            )
        )
    ),
    "DistilBERT": lambda: words(
        hf.DistilBertForSequenceClassification(
            hf.DistilBertConfig(
                vocab_size=50,
                dim=16,
                n_layers=2,
                n_heads=2,
                hidden_dim=24,
                dropout=0,
                attention_dropout=0,
                seq_classif_dropout=0,
            )
        )
    ),
    "GPT-2": lambda: words(hf.GPT2LMHeadModel(GPT2)),
    "GPT-NeoX": lambda: words(
        hf.GPTNeoXForCausalLM(
            hf.GPTNeoXConfig(**WORDS, hidden_dropout=0, attention_dropout=0)
        )
    ),
    "graph convolutions": lambda: applied(GraphNet(), torch.randn(B, 4, 3)),
    "GRU tagger": lambda: applied(Tagger(nn.GRU), torch.randint(0, 50, (B, 4))),
    "Llama": lambda: words(hf.LlamaForCausalLM(LLAMA)),
    "LoRA of GPT-2": lambda: adapted(
        hf.GPT2LMHeadModel(GPT2),
        peft.LoraConfig(
            r=2,
            target_modules=["c_attn", "c_proj"],
            lora_dropout=0.0,
            fan_in_fan_out=True,
        ),
    ),
    "DoRA of Llama": lambda: adapted(
        hf.LlamaForCausalLM(LLAMA),
        peft.LoraConfig(
            r=2, target_modules=["q_proj"], lora_dropout=0.0, use_dora=True
        ),
    ),
    "IA3 of Llama": lambda: adapted(
        hf.LlamaForCausalLM(LLAMA),
        peft.IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
    ),
    "LSTM tagger": lambda: applied(Tagger(nn.LSTM), torch.randint(0, 50, (B, 4))),
    "Mistral": lambda: words(
        hf.MistralForCausalLM(hf.MistralConfig(**WORDS, num_key_value_heads=1))
    ),
    "OPT": lambda: words(
        hf.OPTForCausalLM(
            hf.OPTConfig(
                vocab_size=50,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                ffn_dim=24,
                max_position_embeddings=16,
                word_embed_proj_dim=16,
                dropout=0,
            )
        )
    ),
    "prefixes for GPT-2": lambda: adapted(
        hf.GPT2LMHeadModel(GPT2),
        peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    ),
    "prompts for GPT-2": lambda: adapted(
        hf.GPT2LMHeadModel(GPT2),
        peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    ),
    "Qwen2": lambda: words(
        hf.Qwen2ForCausalLM(hf.Qwen2Config(**WORDS, num_key_value_heads=1))
    ),
    "ResNet": lambda: applied(ResNet(), torch.randn(B, 3, 8, 8)),
    "Swin": lambda: pictures(
        hf.SwinForImageClassification(
            hf.SwinConfig(
                **STILL,
                image_size=16,
                patch_size=2,
                embed_dim=8,
                depths=[2, 2],
                num_heads=[2, 2],
                window_size=4,
                drop_path_rate=0,
            )
        )
    ),
    "T5": lambda: translated(hf.T5ForConditionalGeneration(T5)),
    "U-Net": lambda: applied(UNet(), torch.randn(B, 3, 4, 4)),
    "ViT": lambda: pictures(
        hf.ViTForImageClassification(
            hf.ViTConfig(**COMMON, **STILL, image_size=16, patch_size=4)
        )
    ),
    "wav2vec 2.0": lambda: applied_to_sound(
        hf.Wav2Vec2ForSequenceClassification(WAV2VEC2)
    ),
}


def applied_to_sound(model):
    return model, model.double().train()(torch.randn(B, 100)).logits


@pytest.mark.parametrize("name", MODELS)
def test_models_are_served_by_rules(name, assert_exact, per_example):
    """No operation needs the slow path, and no model is refused."""
    model, outputs = MODELS[name]()
    parameters = [p for p in model.parameters() if p.requires_grad]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "no rule serves")
        assert_exact(per_example(outputs), parameters)


OF_TEXT = ("ALBERT", "BERT", "DeBERTa", "DistilBERT", "GPT-2", "Llama")


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 1 << 62])
@pytest.mark.parametrize("name", OF_TEXT)
def test_batches_of_other_sizes_are_no_mixing(per_example, name, every):
    """What is learnt of one batch holds for the next ones, longer or shorter."""
    model, _ = MODELS[name]()
    parameters = list(model.parameters())
    engine = Engine(verification=Verification(first=0, every=every))
    for num_samples, length in ((5, 6), (3, 6), (6, 6), (1, 4), (8, 4), (5, 5)):
        tokens = torch.randint(3, 50, (num_samples, length))
        losses_B = per_example(model(input_ids=tokens).logits)
        totals = torch.autograd.grad(
            losses_B.sum(), parameters, retain_graph=True, materialize_grads=True
        )
        sums = [torch.zeros_like(p) for p in parameters]
        engine.gradients(losses_B, parameters).add_weighted_sum(
            torch.ones(1, num_samples), [0] * len(sums), sums
        )

        torch.testing.assert_close(sums, [*totals])
