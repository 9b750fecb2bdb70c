-- What the generated database has: each query answers true.

-- feature: extensions
SELECT count(*) = 2 FROM pg_extension WHERE extname IN ('citext', 'pg_trgm');

-- feature: enum
SELECT count(*) = 3 FROM pg_enum;

-- feature: domain with a check
SELECT count(*) = 1 FROM pg_constraint WHERE contypid = 'handle'::regtype;

-- feature: composite type
SELECT bool_or(size IS NOT NULL) FROM clips;

-- feature: identity columns
SELECT count(DISTINCT attidentity) = 2 FROM pg_attribute WHERE attidentity <> '';

-- feature: serial columns
SELECT pg_get_serial_sequence('clips', 'id') IS NOT NULL AND pg_get_serial_sequence('tags', 'id') IS NOT NULL;

-- feature: generated columns
SELECT count(*) = 3 FROM pg_attribute WHERE attgenerated = 's';

-- feature: a dropped column
SELECT count(*) = 1 FROM pg_attribute WHERE attisdropped AND attrelid = 'clips'::regclass;

-- feature: uuid, jsonb, arrays
SELECT count(DISTINCT public_id) = count(*) AND count(metadata -> 'codec') = count(*) AND max(cardinality(labels)) > 2 FROM clips;

-- feature: a partitioned table with a default
SELECT count(*) = 6 AND count(*) FILTER (WHERE pg_get_expr(relpartbound, oid) = 'DEFAULT') = 1 FROM pg_class WHERE relispartition AND relkind = 'r';

-- feature: rows in every partition
SELECT count(DISTINCT tableoid) = 6 FROM clip_views;

-- feature: a partition with its columns in another order
SELECT string_agg(attname, ',' ORDER BY attnum) LIKE 'address,%' FROM pg_attribute WHERE attrelid = 'clip_views_2026_05'::regclass AND attnum > 0;

-- feature: an index over partitions
SELECT count(*) = 1 FROM pg_class WHERE relkind = 'I';

-- feature: a materialized view with a unique index
SELECT relispopulated AND relhasindex FROM pg_class WHERE oid = 'top_clips'::regclass AND relkind = 'm';

-- feature: a view with rows
SELECT count(*) > 100 FROM clip_feed;

-- feature: a sequence of its own
SELECT last_value = 4710 AND is_called FROM invoice_numbers;

-- feature: a sequence not called yet
SELECT last_value = 77 AND NOT is_called FROM coupon_numbers;

-- feature: large objects of differing sizes
SELECT count(*) = 48 AND count(DISTINCT byte_count) > 40 AND bool_and(byte_count = octet_length(lo_get(content))) AND max(byte_count) > 100000 FROM attachments;

-- feature: an empty large object
SELECT byte_count = 0 FROM attachments WHERE content = 3000001;

-- feature: a large object with a hole
SELECT sum(octet_length(data)) < 200000 FROM pg_largeobject WHERE loid = 3000006;

-- feature: check constraints
SELECT count(*) FILTER (WHERE NOT convalidated) = 1 AND count(*) >= 4 FROM pg_constraint WHERE contype = 'c' AND conrelid <> 0;

-- feature: an exclusion constraint
SELECT count(*) = 1 FROM pg_constraint WHERE contype = 'x';

-- feature: foreign keys
SELECT count(*) >= 10 AND count(*) FILTER (WHERE condeferrable) = 1 FROM pg_constraint WHERE contype = 'f' AND conparentid = 0;

-- feature: threads of comments
SELECT count(*) > 1000 AND bool_and(child.clip_id = parent.clip_id) FROM comments child JOIN comments parent ON parent.id = child.parent_id;

-- feature: triggers that have fired
SELECT count(*) = 25 AND bool_and(after ->> 'title' = (before ->> 'title') || ' [updated]') FROM clip_history;

-- feature: comments counted by trigger
SELECT bool_and(comment_count = (SELECT count(*) FROM comments WHERE clip_id = clips.id)) FROM clips WHERE id <= 20;

-- feature: a disabled trigger
SELECT count(*) = 1 FROM pg_trigger WHERE tgenabled = 'D';

-- feature: kinds of index
SELECT count(DISTINCT relam) = 5 FROM pg_class WHERE relkind = 'i' AND relnamespace = 'public'::regnamespace;

-- feature: partial and expression indexes
SELECT bool_or(indpred IS NOT NULL) AND bool_or(indexprs IS NOT NULL) FROM pg_index WHERE indrelid > 16384;

-- feature: comments on objects
SELECT count(DISTINCT classoid) >= 5 AND bool_or(description LIKE '%backslashes%') FROM pg_description WHERE objoid > 16384;

-- feature: a comment on the database
SELECT shobj_description(oid, 'pg_database') <> '' FROM pg_database WHERE datname = current_database();

-- feature: row-level security
SELECT relrowsecurity AND relforcerowsecurity FROM pg_class WHERE relname = 'private_notes';

-- feature: policies
SELECT count(*) = 2 AND count(DISTINCT permissive) = 2 FROM pg_policies;

-- feature: grants to a role
SELECT has_table_privilege('clipper_app', 'clips', 'UPDATE') AND NOT has_table_privilege('clipper_app', 'users', 'SELECT') AND has_column_privilege('clipper_app', 'users', 'handle', 'SELECT') AND NOT has_function_privilege('clipper_app', 'remember_clip()', 'EXECUTE');

-- feature: default privileges
SELECT count(*) = 2 FROM pg_default_acl;

-- feature: settings of the database and of a role in it
SELECT count(*) = 2 AND bool_or(array_to_string(setconfig, ' ') LIKE '%DateStyle=SQL, DMY%') AND bool_or(setconfig = '{work_mem=8MB}') FROM pg_db_role_setting JOIN pg_database ON pg_database.oid = setdatabase WHERE datname = current_database();

-- feature: a role with a password
SELECT rolcanlogin AND rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolname = 'clipper_app';

-- feature: an inheritance child with its columns in another order
SELECT (SELECT count(*) FROM media) = 90 AND (SELECT count(*) FROM ONLY media) = 50 AND (SELECT attname FROM pg_attribute WHERE attrelid = 'media_audio'::regclass AND attnum = 1) = 'bitrate';

-- feature: a table without columns
SELECT relnatts = 0 AND (SELECT count(*) FROM ticks) = 3 FROM pg_class WHERE relname = 'ticks';

-- feature: a strangely named table in another schema
SELECT count(*) = 6 AND bool_or("Größe in m²" = 'NaN') FROM "Früher & später"."Clips ""von gestern"" — it's 100 % \ ☃";

-- feature: an unlogged table
SELECT relpersistence = 'u' AND (SELECT count(*) FROM sessions) = 300 FROM pg_class WHERE relname = 'sessions';

-- feature: a statistics object
SELECT count(*) = 1 FROM pg_statistic_ext;

-- feature: an empty table
SELECT count(*) = 0 FROM announcements;

-- feature: NULLs and values
SELECT count(display_name) BETWEEN 1 AND count(*) - 1 AND count(avatar) BETWEEN 1 AND count(*) - 1 FROM users;

-- feature: numbers that are none
SELECT count(DISTINCT number) = 7 AND max(length(number::text)) = 303 FROM edge_values WHERE number IS NOT NULL;

-- feature: infinite times
SELECT count(*) FILTER (WHERE NOT isfinite(moment)) = 2 AND max(day) = 'infinity' FROM edge_values;

-- feature: bytes that are no text
SELECT bool_or(bytes = '\x00ff5c0a0d09') AND max(octet_length(bytes)) > 20000 FROM edge_values;

-- feature: texts stored out of line
SELECT pg_relation_size(reltoastrelid) > 0 FROM pg_class WHERE oid = 'clips'::regclass;

-- feature: no temporary objects left
SELECT count(*) = 0 FROM pg_class WHERE relpersistence = 't';

-- feature: statistics gathered
SELECT bool_and(reltuples > 0) FROM pg_class WHERE relname IN ('users', 'clips', 'votes', 'comments', 'clip_views_2026_01');
