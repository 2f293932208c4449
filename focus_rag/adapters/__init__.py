"""What the adapters for LangChain and LlamaIndex share: from a call of a framework to a request, with the passages it
retrieved.
"""
