"""A config resolved into plain records, once."""

from infnet_jax.plan.records import LESIONS, Data, Net, Network, Plan, Stage
from infnet_jax.plan.resolve import resolve

__all__ = ["LESIONS", "Data", "Net", "Network", "Plan", "Stage", "resolve"]
