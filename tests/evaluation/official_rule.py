"""A second implementation of COCO's panoptic evaluation on segment ids and lists of segments, with NumPy only.

It shares no code with the package: both are wrong only if the rule was misread twice.
"""

from __future__ import annotations

import numpy as np

VOID = 0


class OfficialQuality:
    """Tallies images. `things` are the category ids of things, `categories` all category ids."""

    def __init__(self, categories, things):
        self.categories, self.things = categories, things
        self.tally = {category: {"iou": 0.0, "tp": 0, "fp": 0, "fn": 0} for category in categories}

    def add(self, true_ids, true_segments, ids, segments):
        """Adds maps of ids and their segments_info: dictionaries with id, category_id and, in the truth, iscrowd."""
        pairs, numbers = np.unique(true_ids.astype(np.int64) << 24 | ids, return_counts=True)
        shared = {divmod(pair, 1 << 24): count for pair, count in zip(pairs.tolist(), numbers.tolist())}
        true_area, area = {}, {}
        for (true_id, segment_id), count in shared.items():
            true_area[true_id] = true_area.get(true_id, 0) + count
            area[segment_id] = area.get(segment_id, 0) + count

        found, explained = set(), set()
        for true in true_segments:
            for segment in segments:
                if true.get("iscrowd") or true["category_id"] != segment["category_id"]:
                    continue
                intersection = shared.get((true["id"], segment["id"]), 0)
                on_void = shared.get((VOID, segment["id"]), 0)
                union = true_area[true["id"]] + area[segment["id"]] - intersection - on_void
                if intersection / union > 0.5:
                    assert true["id"] not in found and segment["id"] not in explained
                    found.add(true["id"])
                    explained.add(segment["id"])
                    self.tally[true["category_id"]]["tp"] += 1
                    self.tally[true["category_id"]]["iou"] += intersection / union

        crowd_of_category = {}
        for true in true_segments:
            if true.get("iscrowd"):
                crowd_of_category[true["category_id"]] = true["id"]  # A later one takes its place.
            elif true["id"] not in found:
                self.tally[true["category_id"]]["fn"] += 1
        for segment in segments:
            if segment["id"] in explained:
                continue
            forgiven = shared.get((VOID, segment["id"]), 0)
            if segment["category_id"] in crowd_of_category:
                forgiven += shared.get((crowd_of_category[segment["category_id"]], segment["id"]), 0)
            if forgiven / area[segment["id"]] <= 0.5:
                self.tally[segment["category_id"]]["fp"] += 1

    def metrics(self):
        """{(group or category, metric): value} of all, things, stuff and each category with segments."""
        rows = {}
        for category, count in self.tally.items():
            weight = count["tp"] + count["fp"] / 2 + count["fn"] / 2
            if weight:
                sq = count["iou"] / count["tp"] if count["tp"] else 0.0
                rows[category] = {"pq": count["iou"] / weight, "sq": sq, "rq": count["tp"] / weight}
        found = {(category, name): value for category, row in rows.items() for name, value in row.items()}
        stuff = set(self.categories) - set(self.things)
        for group, members in (("all", self.categories), ("things", self.things), ("stuff", stuff)):
            for name in ("pq", "sq", "rq"):
                values = [row[name] for category, row in rows.items() if category in members]
                found[group, name] = sum(values) / len(values) if values else 0.0
        return found
