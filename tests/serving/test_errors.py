"""What a client hears of an error, and what the log says."""

import errno
import logging

import pytest

pytest.importorskip("starlette")

from mobileo_mlx.errors import CheckpointError, OptionError
from mobileo_mlx.serving.errors import api_error


def test_where_a_file_lies_is_in_the_log_alone(caplog):
    sentence = "dit holds NaN: 'a.weight' in '/home/somebody/models/x/dit.safetensors'; get the model again."
    with caplog.at_level(logging.ERROR):
        error = api_error(CheckpointError(sentence))
    assert (error.status, error.message) == (
        500,
        "dit holds NaN: 'a.weight' in 'dit.safetensors'; get the model again.",
    )
    assert sentence in caplog.text
    assert api_error(CheckpointError(r"'C:\Users\somebody\dit.safetensors' is damaged.")).message == (
        "'dit.safetensors' is damaged."
    )


def test_what_a_request_says_is_quoted_as_it_was():
    assert api_error(OptionError("size '/a/b' is not possible.")).message == "size '/a/b' is not possible."


def test_a_full_disk_is_a_sentence_and_no_traceback(caplog):
    with caplog.at_level(logging.ERROR):
        error = api_error(OSError(errno.ENOSPC, "No space left on device"))
    assert (error.status, error.code, error.fields["type"]) == (507, "disk_full", "server_error")
    assert "TMPDIR" in caplog.text
    assert "Traceback" not in caplog.text


def test_what_nobody_can_cause_is_in_the_log_alone(caplog):
    with caplog.at_level(logging.ERROR):
        error = api_error(ValueError("a secret"))
    assert error.status == 500
    assert "secret" not in error.message
    assert "a secret" in caplog.text
