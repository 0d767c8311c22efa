"""Combining vectors of the same name and layout. A rule is one file with one `Rule` and one line here."""

from fedmask.aggregation.mean import MEAN, WeightedMean
from fedmask.aggregation.median import MEDIAN
from fedmask.aggregation.norm import clipped, l2_norm
from fedmask.aggregation.rule import Combination, Rule, average_over_tasks
from fedmask.aggregation.trimmed_mean import TRIMMED_MEAN

RULES: dict[str, Rule] = {rule.name: rule for rule in (MEAN, MEDIAN, TRIMMED_MEAN)}
"""By name, as asked for with server.combine=."""

__all__ = ["RULES", "Combination", "Rule", "WeightedMean", "average_over_tasks", "clipped", "l2_norm"]
