"""Makes the third frozen repository: a cluster that was upgraded, and settings that were switched in between.

-20 days   PostgreSQL 15, segments of 16 MiB, signed and not sealed: a dump, backup 1, moment 0
-15 days   backup 2, taken from a standby
-10 days   the same cluster as PostgreSQL 18 (pg_upgrade), sealed and not signed: backup 3 of system 2, moment 1, a dump
 -5 days   a segment that was archived sealed is archived again by who signs and does not seal: it is there twice
"""
