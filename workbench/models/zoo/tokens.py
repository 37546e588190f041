"""The zoo's tokenizer: byte-level BPE with a chat template, built from the corpus. Knows nothing of models.

Digits are pieces of their own, so that a number reads the same wherever it stands; every byte is a piece, so
that any text survives encode and decode. The special tokens are the first ids.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from workbench.models.zoo.corpus import tasks
from workbench.models.zoo.corpus.item import Segment

VOCAB_SIZE: Final = 4096
FOLDER: Final = Path(__file__).parent / "tokenizer"  # the one that all models of the zoo share
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SPECIAL: Final = (PAD, BOS, EOS, "<|system|>", "<|user|>", "<|assistant|>")
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
# A word with the blank before it, one digit, a run of signs with the blank before it, or blanks.
SPLIT: Final = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SPLIT_ASCII: Final = re.compile(r" ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")
CHAT_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role'] + ': use system, user or assistant') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Items of each task that the pieces are learnt from; text that is random anyway needs few.
SAMPLE: Final = (
    ("stories", 16_000), ("arithmetic", 500), ("retrieval", 800), ("records", 6_000), ("copying", 3_000),
    ("sorting", 3_000), ("passages", 6_000), ("choice", 5_000), ("sentiment", 6_000), ("chat", 3_000),
)  # fmt: skip


def sample_texts(scale: float = 1.0, seed: int = 0) -> Iterator[str]:
    """The texts the pieces are learnt from, special tokens taken out."""
    special = re.compile("|".join(map(re.escape, SPECIAL)))
    for name, count in SAMPLE:
        for index in range(max(1, int(count * scale))):
            yield special.sub("\n", tasks.make(name, "train", seed, index).text)


def build(folder: Path, scale: float = 1.0, vocab_size: int = VOCAB_SIZE) -> None:
    """Learns the pieces and writes the tokenizer's three files to the folder."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    core.train_from_iterator(sample_texts(scale), trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BOS, eos_token=EOS, pad_token=PAD,
        extra_special_tokens=list(SPECIAL[3:]), model_max_length=2048, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(str(folder))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that every version of transformers knows
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


class Encoder:
    """Encodes corpus text quickly: the pieces of each word are looked up once.

    Equal to the tokenizer without its special tokens added, for text whose letters and digits are ASCII;
    other text goes to the tokenizer as it is.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.core: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.special = re.compile("(" + "|".join(map(re.escape, SPECIAL)) + ")")
        self.ids: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of the text, without bos or eos."""
        if not text.isascii():
            return list(self.core.encode(text, add_special_tokens=False).ids)
        out: list[int] = []
        for i, part in enumerate(self.special.split(text) if "<|" in text else (text,)):
            if i % 2:
                out.append(SPECIAL.index(part))
            else:
                self.encode_plain(part, out)
        return out

    def encode_plain(self, text: str, out: list[int]) -> None:
        """Appends the ids of text without special tokens."""
        ids = self.ids
        for word in SPLIT_ASCII.findall(text):
            found = ids.get(word)
            if found is None:
                found = self.learn(word)
            out += found

    def learn(self, word: str) -> list[int]:
        """Looks a word up in the tokenizer and keeps it; forgets all of them when there are too many."""
        if len(self.ids) > 100_000:
            self.ids.clear()
        found = list(self.core.encode(word, add_special_tokens=False).ids)
        self.ids[word] = found
        return found

    def encode_segments(self, segments: tuple[Segment, ...]) -> tuple[list[int], list[bool]]:
        """Ids of a whole text from bos to eos, and for each whether the model is to write it."""
        ids, targets = [BOS_ID], [False]
        for segment in segments:
            piece = self.encode(segment.text)
            ids += piece
            targets += [segment.target] * len(piece)
        ids.append(EOS_ID)
        targets.append(True)
        return ids, targets
