"""What LangChain gets from here and gives to here, under one name."""

from workbench.interop.chat_model import PhiChatModel
from workbench.interop.retrieval import (
    LangChainRetriever,
    WorkbenchEmbeddings,
    WorkbenchRetriever,
    WorkbenchVectorStore,
    from_langchain,
)

__all__ = [
    "LangChainRetriever",
    "PhiChatModel",
    "WorkbenchEmbeddings",
    "WorkbenchRetriever",
    "WorkbenchVectorStore",
    "from_langchain",
]
