"""Textproto files: parsed with errors that name the file and the line."""

from __future__ import annotations

import re

from google.protobuf import text_format
from google.protobuf.message import Message

from maxdl_tf.errors import UserError


def parse(text: str, message: Message, name: str) -> Message:
    """Parses `text` into `message` and returns it.

    Args:
      text: The textproto.
      message: An empty message of the wanted type.
      name: Name of the text in error messages, such as its path.

    Raises:
      UserError: With `name` and the line, for a syntax error or an unknown field.
    """
    try:
        return text_format.Parse(text, message)
    except text_format.ParseError as error:
        line = error.GetLine()
        reason = re.sub(r"^\d+:\d+ : ", "", str(error))
        where = f"{name}:{line}" if line else name
        raise UserError(f"{where}: {reason}") from error
