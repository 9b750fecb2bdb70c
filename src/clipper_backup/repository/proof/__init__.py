"""The independent check of a prune: what would remain is read again, by another way, before anything is removed.

It shares with the plan that it is to catch nothing but the decoding of names and documents, and the store's protocol (an import
contract sees to that); what is promised is written down here a second time. docs/design/prune.md has its invariants.
"""
