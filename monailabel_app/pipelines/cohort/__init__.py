"""Many scans, one after the other, on all devices of one or several machines, for days if need be.

``run.run_cohort`` lists the scans (``scans``), leaves out those with a current record (``basis``, ``journal``), has the
others analysed (``unit``) by processes (``processes``) or Ray actors (``ray_actors``), appends a record per scan to
cohort.jsonl and writes cohort.csv and cohort.html from the records as it goes (``tables``).
"""
