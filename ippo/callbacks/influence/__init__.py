"""The inside of the influence filter. To read it, begin with the units of work:

- ``options``: what the filter can be told; ``unit``: what it does in a training, ``buffer_unit`` and ``batch_unit``
  what happens to a rollout buffer and to a batch.
- Scores: ``route`` decides how a buffer is scored, ``scoring`` scores, along a ``held_direction``; ``default_scorer``
  and ``keep_by_gold`` stand in for what was not given.
- Selections: ``selecting`` makes one of all ranks' scores, ``decisions`` writes it down (``audit``) and stops the
  training (``survival``), ``curves`` and ``health`` tell of it.
- What it does to a buffer: ``buffers``. To a batch: ``batch_selection``, by ``batch_rows``, ``batch_changes`` and
  ``overrides``.
"""
