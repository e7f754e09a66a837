"""One memory budget for many processes: leases, readings of all, and where there is most room."""

from memtools.cluster._carrier import CarrierError, Node
from memtools.cluster._cluster import Cluster, ClusterStatistics, Lease, LeaseLost, LeaseTimeout, join
from memtools.cluster._needs import Needs, needs_of

__all__ = [
    "CarrierError",
    "Cluster",
    "ClusterStatistics",
    "Lease",
    "LeaseLost",
    "LeaseTimeout",
    "Needs",
    "Node",
    "join",
    "needs_of",
]
