"""The OpenAPI document: tables of operations and schemas, written in two versions of the standard.

`app` serves what `document` makes of them. Invariant: one source for both versions; ranges come from the code
that checks them.
"""
