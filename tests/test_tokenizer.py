import json
import random
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from mobileo_mlx.errors import CheckpointError, OutputError
from mobileo_mlx.tokenizer import IM_END, IM_START, Tokenizer

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())  # the library's own list of the 256 letters
MERGES = ["c a", "ca t", "Ġ cat", "Ġ Ġ", "ð Ł", "1 2"]
SIZE = 256 + len(MERGES)
SPECIALS = ["<|endoftext|>", IM_START, IM_END]


def write_vocabulary(folder: Path, merges: str = "#version: 0.2\n" + "\n".join(MERGES) + "\n") -> Path:
    tokens = BYTES + [merge.replace(" ", "") for merge in MERGES]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_bytes(merges.encode())
    return folder


@pytest.fixture
def tokenizer(tmp_path) -> Tokenizer:
    return Tokenizer.load(write_vocabulary(tmp_path))


def tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([i]) for i in tokenizer.encode(text)]


def test_merges_words_and_added_tokens(tokenizer):
    assert tokenizer.vocab_size == SIZE + 3
    assert [tokenizer.token_id(token) for token in SPECIALS] == [SIZE, SIZE + 1, SIZE + 2]
    assert tokenizer.token_id("<image>") is None
    assert tokens(tokenizer, "cat cat<|im_end|>cat") == ["cat", " cat", "<|im_end|>", "cat"]


def test_digits_never_merge_but_letters_do(tokenizer):
    # There is a merge for "12"; the words forbid it.
    assert tokens(tokenizer, "12cat") == ["1", "2", "cat"]


def test_text_is_composed_before_it_is_encoded(tokenizer):
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")


@pytest.mark.parametrize(
    "text", ["", " ", "a  b\n\n\tc\r\n ", "日本語 🐱\u200d👓 Grüße", "x\x00y\x7f\xad", "I'LL don't ﬁ"]
)
def test_every_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_line_ends_of_windows_in_the_merges_do_no_harm(tmp_path):
    tokenizer = Tokenizer.load(write_vocabulary(tmp_path, "#version: 0.2\r\n" + "\r\n".join(MERGES) + "\r\n"))
    assert tokens(tokenizer, "cat cat") == ["cat", " cat"]


def test_ids_without_a_token_say_nothing(tokenizer):
    (a,) = tokenizer.encode("a")
    assert tokenizer.decode([a, 99999, -200, a]) == "aa"


def test_added_tokens_come_from_the_files(tmp_path):
    write_vocabulary(tmp_path)
    added = {token: SIZE + i for i, token in enumerate([*SPECIALS, "[IMG]"])}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    config = {
        "added_tokens_decoder": {str(SIZE + 4): {"content": "<tool>", "special": False}},
        "eos_token": IM_END,
        "pad_token": {"content": "<|endoftext|>"},
        "additional_special_tokens": ["[IMG]"],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.encode("<|im_start|>a[IMG]<tool><|endoftext|><|im_end|>")
    assert ids == [SIZE + 1, *tokenizer.encode("a"), SIZE + 3, SIZE + 4, SIZE, SIZE + 2]
    # `<|im_start|>` is not declared special, so only a stream hides it.
    assert tokenizer.decode(ids, skip_special=True) == "<|im_start|>a<tool>"
    stream = tokenizer.stream()
    assert "".join(map(stream.add, ids)) + stream.flush() == "a<tool>"


def test_saved_tokenizers_are_the_same(tokenizer, tmp_path):
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved" / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "saved")
    text = "<|im_start|>cat  12 é 🐱<|im_end|>"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.vocab_size == tokenizer.vocab_size
    assert again.decode(again.encode(text), skip_special=True) == "cat  12 é 🐱"
    with pytest.raises(OutputError, match=r"tokenizer\.json' exists already"):
        tokenizer.save(tmp_path / "saved" / "tokenizer.json")


def test_tokenizer_json_goes_before_the_other_files_and_never_cuts_or_pads(tmp_path):
    write_vocabulary(tmp_path)
    backend = Backend(models.BPE({token: i for i, token in enumerate(BYTES)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokens(tokenizer, "cat") == ["c", "a", "t"]
    assert len(tokenizer.encode("catcat")) == 6


def test_a_stream_shows_whole_characters_only(tokenizer):
    text = "Grüße 🐱 日本"
    stream = tokenizer.stream()
    segments = [stream.add(i) for i in tokenizer.encode(text)]
    assert "".join(segments) == text
    assert len(segments) > len(text)  # so characters were split over tokens
    assert not any("\ufffd" in segment for segment in segments)
    assert stream.flush() == ""


def test_a_stream_that_ends_inside_a_character(tokenizer):
    *start, _ = tokenizer.encode("a🐱")
    stream = tokenizer.stream()
    assert "".join(map(stream.add, start)) == "a"
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""
    assert stream.add(start[0]) == "a"


def test_a_stream_says_what_decoding_at_once_says(tokenizer):
    # Random bytes are mostly not UTF-8: both must replace the same ones, and so must the library.
    ids = random.Random(0).choices(range(SIZE), k=2000)
    stream = tokenizer.stream()
    text = "".join(map(stream.add, ids)) + stream.flush()
    assert text == tokenizer.decode(ids)
    letters = BYTES + [merge.replace(" ", "") for merge in MERGES]
    assert text == decoders.ByteLevel().decode([letters[i] for i in ids])


@pytest.mark.parametrize("token", SPECIALS)
def test_a_stream_hides_control_tokens(tokenizer, token):
    stream = tokenizer.stream()
    assert stream.add(tokenizer.token_id(token)) == ""
    assert tokenizer.is_control(tokenizer.token_id(token))
    assert not tokenizer.is_control(0)


def damage(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("_json", ".json").replace("_txt", ".txt")).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_json": '{"version"'}, r"tokenizer\.json' can't be read as a tokenizer"),
        ({"vocab_json": '{"a":'}, r"vocab\.json' and 'merges\.txt' beside it can't be read"),
        (
            {"merges_txt": "#version: 0.2\nnot in vocabulary\n"},
            r"vocab\.json' and 'merges\.txt' beside it can't be read",
        ),
        ({"vocab_json": '{"a": 0}', "merges_txt": "#version: 0.2\n"}, r"vocab\.json' has no token "),
        ({"added_tokens_json": '{"<|im_end|>": 262}'}, r"vocab\.json' has no token <\|im_start\|>"),
        ({"added_tokens_json": '{"<|im_end|>": 999}'}, r"<\|im_end\|> of '.*' has the id 999, but 262 is the next"),
        ({"added_tokens_json": '{"<|im_end|>": "x"}'}, r"added tokens in '.*' .* are malformed"),
        ({"added_tokens_json": "[1]"}, r"added_tokens\.json' does not hold a JSON object"),
        ({"tokenizer_config_json": "{"}, r"tokenizer_config\.json' is not JSON"),
        ({"tokenizer_config_json": '{"added_tokens_decoder": {"1": {}}}'}, r"added tokens in '.*' .* are malformed"),
    ],
)
def test_damaged_files_are_named(tmp_path, files, message):
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.load(damage(write_vocabulary(tmp_path), **files))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"needs tokenizer\.json, or vocab\.json with merges\.txt"):
        Tokenizer.load(tmp_path)
    write_vocabulary(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        Tokenizer.load(tmp_path)


def test_every_text_of_the_reference(reference):
    tokenizer = Tokenizer.load(reference / "qwen2-tokenizer")
    data = json.loads((reference / "prompts" / "prompts.json").read_text(encoding="utf-8"))
    assert tokenizer.vocab_size == data["len"]
    assert {token: tokenizer.token_id(token) for token in data["special_ids"]} == data["special_ids"]
    cases = [(item["plain_ids"], item["plain_decoded"], item["plain_decoded_skip_special"]) for item in data["items"]]
    cases += [(case["ids"], case["decoded"], case["decoded_skip_special"]) for case in data["decode"]]
    assert [tokenizer.encode(item["text"]) for item in data["items"]] == [item["plain_ids"] for item in data["items"]]
    for ids, decoded, without_special in cases:
        assert tokenizer.decode(ids) == decoded
        assert tokenizer.decode(ids, skip_special=True) == without_special


def test_a_plain_qwen2_vocabulary_has_three_added_tokens(reference, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).symlink_to(reference / "qwen2-tokenizer" / name)
    tokenizer = Tokenizer.load(tmp_path)
    assert [tokenizer.token_id(token) for token in SPECIALS] == [151643, 151644, 151645]
    assert tokenizer.vocab_size == 151646
