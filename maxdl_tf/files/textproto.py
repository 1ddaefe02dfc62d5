"""Parses textproto files, with errors that name the file and the line."""

from __future__ import annotations

import difflib
import re

from google.protobuf import text_format
from google.protobuf.message import Message

from maxdl_tf.errors import UserError


def parse(text: str, message: Message, name: str) -> Message:
    """Parses `text` into `message` and returns it.

    Args:
      text: Text of the textproto.
      message: Empty message of the expected type.
      name: Name of the text in errors, such as its path.

    Raises:
      UserError: The text has a syntax error or an unknown field. The error gives `name` and the line.
    """
    try:
        return text_format.Parse(text, message)
    except text_format.ParseError as error:
        line = error.GetLine()
        reason = re.sub(r"^\d+:\d+ : ", "", str(error))
        where = f"{name}:{line}" if line else name
        unknown = re.match(r'Message type "([\w.]+)" has no field named "(\w+)"', reason)
        if unknown:
            fields = message.DESCRIPTOR.file.pool.FindMessageTypeByName(unknown[1]).fields_by_name
            close = difflib.get_close_matches(unknown[2], fields, n=1)
            reason += f" Did you mean {close[0]}?" if close else f" Its fields are {', '.join(fields)}."
        raise UserError(f"{where}: {reason}") from error
