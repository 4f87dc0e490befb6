"""Asking servers over HTTP: repeated where they fail for now, at the rate that they allow, and accounted for."""

from limbeck.remote.chat import Completions
from limbeck.remote.client import RETRIES, Client, RefusedError
from limbeck.remote.spending import Spending

__all__ = ["RETRIES", "Client", "Completions", "RefusedError", "Spending"]
