import json
import random
import re
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
        ({"tokenizer_json": '{"version"'}, r"tokenizer\.json' is not JSON"),
        ({"tokenizer_json": "{}"}, r"tokenizer\.json' holds no BPE model, so it is not the tokenizer of a Mobile-O"),
        ({"tokenizer_json": "[" * 100_000}, r"tokenizer\.json' nests too deeply"),
        ({"vocab_json": '{"a":'}, r"vocab\.json' is not JSON"),
        ({"vocab_json": r'{"\ud800": 0}'}, r"vocab\.json' holds half a surrogate pair"),
        ({"vocab_json": '{"日": 0}'}, r"vocab\.json' has tokens with '日', which stands for no byte"),
        ({"merges_txt": "#version: 0.2\nnot in vocabulary\n"}, r"merges of '.*vocab\.json' are not pairs"),
        ({"merges_txt": "#version: 0.2\nq zz\n"}, r"merges of '.*vocab\.json' do not fit its vocabulary"),
        *(
            ({"vocab_json": vocab}, r"vocab\.json' has no vocabulary with ids from 0 on without a gap")
            for vocab in (
                '{"a": -1}',
                '{"a": 1}',
                '{"a": 0, "b": 0}',
                '{"a": 0, "b": 18446744073709551616}',
                '{"a": 0.0}',
                '{"a": true, "b": 0}',
                '{"a": [0]}',
                '{"a": "0"}',
            )
        ),
        ({"vocab_json": '{"a": 0}', "merges_txt": "#version: 0.2\n"}, r"vocab\.json' has no token "),
        ({"added_tokens_json": '{"<|im_end|>": 262}'}, r"vocab\.json' has no token <\|im_start\|>"),
        ({"added_tokens_json": '{"<|im_end|>": 999}'}, r"<\|im_end\|> of '.*' has the id 999, but 262 is the next"),
        ({"added_tokens_json": '{"<|im_end|>": "x"}'}, r"added tokens in '.*' .* are malformed"),
        ({"added_tokens_json": '{"<|im_end|>": -1}'}, r"<\|im_end\|> of '.*' has the id -1, but"),
        ({"added_tokens_json": '{"<|im_end|>": 1e9}'}, r"added tokens in '.*' .* are malformed"),
        ({"added_tokens_json": '{"<|im_end|>": 262, "<|im_start|>": 262}'}, r"added tokens in '.*' .* are malformed"),
        ({"added_tokens_json": r'{"\udc00": 262}'}, r"added_tokens\.json' holds half a surrogate pair"),
        ({"tokenizer_config_json": '{"eos_token": 5}'}, r"added tokens in '.*' .* are malformed"),
        ({"tokenizer_config_json": '{"eos_token": {"content": [1]}}'}, r"added tokens in '.*' .* are malformed"),
        ({"tokenizer_config_json": '{"additional_special_tokens": 1}'}, r"added tokens in '.*' .* are malformed"),
        ({"added_tokens_json": "[1]"}, r"added_tokens\.json' does not hold a JSON object"),
        ({"tokenizer_config_json": "{"}, r"tokenizer_config\.json' is not JSON"),
        ({"tokenizer_config_json": '{"added_tokens_decoder": {"1": {}}}'}, r"added tokens in '.*' .* are malformed"),
    ],
)
def test_damaged_files_are_named(tmp_path, files, message):
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.load(damage(write_vocabulary(tmp_path), **files))


def tokenizer_json(**changes: object) -> dict:
    """What `tokenizers` writes for Qwen2's pipeline over single bytes."""
    vocab = {token: i for i, token in enumerate(BYTES)}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": 256 + i, "content": token, "special": True, "normalized": False} for i, token in enumerate(SPECIALS)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "vocab": vocab, "merges": []},
    }
    for path, value in changes.items():
        *keys, last = path.split("__")
        inside: dict = content
        for key in keys:
            inside = inside[key]
        inside[last] = value
    return content


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalizer": None},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}},
        {"model__continuing_subword_prefix": "", "model__end_of_word_suffix": "", "model__byte_fallback": False},
        {"model__merges": []},
        {"truncation": {"max_length": 2}, "padding": {"length": 9}, "post_processor": {"type": "anything"}},
    ],
)
def test_what_a_tokenizer_json_may_say(tmp_path, changes):
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(**changes)))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode("a <|im_end|>é")) == "a <|im_end|>é"
    assert tokenizer.encode("<|im_end|>") == [258]
    assert tokenizer.decode([258], skip_special=True) == ""


BLANK = {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}}
EVIL = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "holds no BPE model"),
        ({"model__type": "Unigram"}, "holds no BPE model"),
        ({"model__dropout": 0.5}, "sets dropout"),
        # `tokenizers` itself panics here.
        ({"model__continuing_subword_prefix": r"\p{L}+"}, "sets continuing_subword_prefix"),
        ({"model__vocab": []}, "ids from 0 on"),
        ({"model__vocab": {}}, "has the id 256, but 0 is the next"),
        ({"model__merges": [["a"]]}, "are not pairs"),
        ({"model__merges": [["a", 1]]}, "are not pairs"),
        ({"model__merges": ["a b"]}, "do not fit"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}}, "changes text"),
        ({"normalizer": {"type": "Sequence", "normalizers": 3}, "pre_tokenizer": None}, "cuts text"),
        ({"normalizer": 5}, "changes text"),
        (BLANK, "cuts text"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [EVIL]}}, "cuts text into other words than Qwen2's"),
        ({"pre_tokenizer": []}, "cuts text"),
        ({"added_tokens": {}}, "has no token <|im_start|>"),
        ({"added_tokens": "x"}, "malformed added tokens"),
        ({"added_tokens": [{"id": 256, "content": IM_END, "lstrip": 1}]}, "malformed added tokens"),
        ({"added_tokens": [{"id": True, "content": IM_END}]}, "malformed added tokens"),
        ({"added_tokens": [{"id": 2**63, "content": IM_END}]}, "has the id 9223372036854775808, but 256 is the next"),
        ({"added_tokens": [{"id": 256, "content": ""}]}, "has the id 256, but None is the next"),
        ({"added_tokens": [{"id": 256 + i, "content": str(i)} for i in range(10_001)]}, "lists 10001 added tokens"),
    ],
)
def test_other_tokenizers_are_refused(tmp_path, changes, message):
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(**changes)))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        Tokenizer.load(tmp_path)


def test_panics_are_errors(tmp_path, monkeypatch):
    """None is known with what is handed to `tokenizers`; they are no `Exception`."""

    class PanicException(BaseException):
        pass

    def panic(*arguments):
        raise PanicException("index out of range")

    monkeypatch.setattr("tokenizers.models.BPE", panic)
    with pytest.raises(CheckpointError, match=r"vocab\.json' do not fit its vocabulary \(index out of range\)"):
        Tokenizer.load(write_vocabulary(tmp_path))


def test_a_tokenizer_of_a_larger_model(tmp_path):
    folder = write_vocabulary(tmp_path)
    assert Tokenizer.load(folder, rows=SIZE + 3).vocab_size == SIZE + 3
    with pytest.raises(CheckpointError, match=f"has {SIZE + 3} tokens, and the model's vocabulary {SIZE + 2}"):
        Tokenizer.load(folder, rows=SIZE + 2)


def test_a_bound_of_the_number_of_tokens(tokenizer):
    # The longest token is <|endoftext|>, of 13 bytes.
    assert [tokenizer.fewest_tokens(text) for text in ("", "a" * 13, "a" * 14, "日" * 13)] == [0, 1, 2, 3]
    random.seed(1)
    pieces = [*SPECIALS, " cat", "  ", "e\u0301", "\u1100\u1161\u11a8", "\u0958", "\u1fef", "12", "日本", "\r\n"]
    for _ in range(200):
        text = "".join(random.choices(pieces, k=random.randint(0, 60)))
        assert tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text))
    assert tokenizer.fewest_tokens("<|endoftext|>" * 1000) == len(tokenizer.encode("<|endoftext|>" * 1000))


def test_a_bound_where_tokens_take_the_blanks_beside_them(tmp_path):
    listed = [{"id": 256 + i, "content": token, "rstrip": True, "lstrip": True} for i, token in enumerate(SPECIALS)]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(added_tokens=listed)))
    tokenizer = Tokenizer.load(tmp_path)
    text = f"{' ' * 1000}{IM_END}{' ' * 1000}"
    assert len(tokenizer.encode(text)) == 1
    assert tokenizer.fewest_tokens(text) == 1


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
