"""Writing memories from what people have: conversations, documents, folders of them.

    from libmem import ingest

    with libmem.connect() as client:
        ingest.folder(client, "/docs", Path("handbook"))
        ingest.conversation(client, "/chats", turns, session="monday")

No model is asked, nothing is worded anew. The same thing twice writes nothing; what was interrupted
is completed by doing it again. docs/ingest.md shows it. `client` is the synchronous one.
"""

from libmem.ingest.conversations import conversation
from libmem.ingest.documents import document
from libmem.ingest.duplicates import Duplicates
from libmem.ingest.files import Format, file, folder
from libmem.ingest.messages import Turn, read_turns
from libmem.ingest.pieces import Ingested

__all__ = [
    "Duplicates",
    "Format",
    "Ingested",
    "Turn",
    "conversation",
    "document",
    "file",
    "folder",
    "read_turns",
]
