"""Endpoints: from ASGI to the dispatcher and back."""
