"""Small tokenizers of the transformers library, trained here, in the forms of SigLIP, SigLIP 2 and CLIPA."""

from pathlib import Path

TEXTS = [
    f"{first} {second}."
    for first in ("a photo of a", "red", "grand", "giant", "house of the", "1st place", "old sea")
    for second in ("cat", "ox", "piano", "panda bear", "zoo", "emu", "medal", "tie", "lion", "cards", "star")
]


def write_tokenizer(folder: Path, kind: str, vocab_size: int) -> None:
    """Write a tokenizer as a folder that `AutoTokenizer` reads.

    Args:
        folder: exists.
        kind: `t5` has no start and pads with its end; `gemma` has no start and another padding; `bert` has
            start and end.
        vocab_size: largest number of tokens.
    """
    # imported here: most tests do without transformers, which takes a second
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if kind == "bert":
        special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size, special_tokens=list(special.values()), show_progress=False
        )
        template, named = "[CLS] $A [SEP]", ["[CLS]", "[SEP]"]
    else:
        pad = {"t5": "</s>", "gemma": "<pad>"}[kind]
        special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": pad}
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<pad>", "</s>", "<unk>"],
            initial_alphabet=list("abcdefghijklmnopqrstuvwxyz"),
            show_progress=False,
        )
        template, named = "$A </s>", ["</s>"]
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, tokenizer.token_to_id(token)) for token in named]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="right", **special).save_pretrained(
        folder
    )
