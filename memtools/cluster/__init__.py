"""One memory budget for many processes: leases, readings of all, and where there is most room."""

from memtools.cluster._carrier import CarrierError, Node
from memtools.cluster._cluster import Cluster, ClusterStatistics, Lease, LeaseLost, LeaseTimeout, join

__all__ = ["CarrierError", "Cluster", "ClusterStatistics", "Lease", "LeaseLost", "LeaseTimeout", "Node", "join"]
