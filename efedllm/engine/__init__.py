"""Running a contiguous range of transformer layers. `protocol` needs numpy only; `shard` brings torch."""
