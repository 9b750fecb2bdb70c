-- What is quicker to make once the rows are there (keys, indexes), and what only works then (triggers that watch changes).

-- section: keys
ALTER TABLE users ADD PRIMARY KEY (id), ADD UNIQUE (handle), ADD UNIQUE (email), ADD UNIQUE (public_id);
ALTER TABLE clips ADD PRIMARY KEY (id), ADD UNIQUE (public_id);
ALTER TABLE tags ADD PRIMARY KEY (id), ADD UNIQUE (name);
ALTER TABLE clip_tags ADD PRIMARY KEY (clip_id, tag_id);
ALTER TABLE votes ADD PRIMARY KEY (clip_id, user_id);
ALTER TABLE comments ADD PRIMARY KEY (id);
ALTER TABLE attachments ADD PRIMARY KEY (id);
ALTER TABLE clip_history ADD PRIMARY KEY (id);
ALTER TABLE private_notes ADD PRIMARY KEY (id);
ALTER TABLE media ADD PRIMARY KEY (id);
ALTER TABLE media_audio ADD PRIMARY KEY (id);
ALTER TABLE announcements ADD PRIMARY KEY (id);
ALTER TABLE sessions ADD PRIMARY KEY (token);
ALTER TABLE edge_values ADD PRIMARY KEY (id);
ALTER TABLE "Früher & später"."Clips ""von gestern"" — it's 100 % \ ☃" ADD CONSTRAINT "Schlüssel & Schloss" PRIMARY KEY ("select");
ALTER TABLE maintenance ADD CONSTRAINT maintenance_one_at_a_time EXCLUDE USING gist (during WITH &&);

-- section: references and checks
ALTER TABLE clips ADD FOREIGN KEY (user_id) REFERENCES users ON DELETE CASCADE,
    ADD CONSTRAINT clips_lasting CHECK (duration_seconds > 0), ADD CONSTRAINT clips_sized CHECK (width > 0 AND height > 0),
    ADD CONSTRAINT clips_titled CHECK (length(title) BETWEEN 1 AND 200) NOT VALID;
ALTER TABLE tags ADD FOREIGN KEY (parent_id) REFERENCES tags DEFERRABLE INITIALLY DEFERRED;
ALTER TABLE clip_tags ADD FOREIGN KEY (clip_id) REFERENCES clips ON DELETE CASCADE, ADD FOREIGN KEY (tag_id) REFERENCES tags;
ALTER TABLE votes ADD FOREIGN KEY (clip_id) REFERENCES clips ON DELETE CASCADE, ADD FOREIGN KEY (user_id) REFERENCES users ON DELETE CASCADE;
ALTER TABLE comments ADD FOREIGN KEY (clip_id) REFERENCES clips ON DELETE CASCADE, ADD FOREIGN KEY (user_id) REFERENCES users,
    ADD FOREIGN KEY (parent_id) REFERENCES comments ON DELETE CASCADE;
ALTER TABLE clip_views ADD FOREIGN KEY (clip_id) REFERENCES clips;
ALTER TABLE attachments ADD FOREIGN KEY (clip_id) REFERENCES clips;
ALTER TABLE private_notes ADD FOREIGN KEY (owner_id) REFERENCES users;

-- section: indexes
CREATE INDEX clips_of_user ON clips (user_id, published_at DESC NULLS LAST) INCLUDE (title);
CREATE INDEX clips_newest ON clips (published_at DESC) WHERE visibility = 'public';
CREATE INDEX clips_labels ON clips USING gin (labels);
CREATE INDEX clips_metadata ON clips USING gin (metadata jsonb_path_ops);
CREATE INDEX clips_words ON clips USING gin (title_search);
CREATE INDEX users_called ON users (lower(display_name) text_pattern_ops);
CREATE INDEX users_resembling ON users USING gin ((handle::text) gin_trgm_ops);
CREATE INDEX votes_of_user ON votes (user_id);
CREATE INDEX comments_of_clip ON comments (clip_id, created_at);
CREATE INDEX comments_answering ON comments (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX comments_when ON comments USING brin (created_at);
CREATE INDEX clip_views_of_clip ON clip_views (clip_id, viewed_at);
CREATE INDEX sessions_of_user ON sessions USING hash (user_id);
ALTER TABLE clips ALTER COLUMN labels SET STATISTICS 500;
CREATE STATISTICS clips_shape (dependencies, ndistinct, mcv) ON width, height FROM clips;

-- section: views
CREATE MATERIALIZED VIEW top_clips AS
SELECT clips.id, clips.title, clip_score(count(*) FILTER (WHERE value = 1), count(*) FILTER (WHERE value = -1)) AS score
FROM clips JOIN votes ON votes.clip_id = clips.id
WHERE clips.visibility = 'public' GROUP BY clips.id ORDER BY score DESC, clips.id LIMIT 1000;
CREATE UNIQUE INDEX top_clips_id ON top_clips (id);
CREATE VIEW clip_feed WITH (security_barrier) AS
SELECT clips.id, clips.title, users.handle, top_clips.score, (SELECT count(*) FROM comments WHERE comments.clip_id = clips.id) AS comments
FROM clips JOIN users ON users.id = clips.user_id LEFT JOIN top_clips ON top_clips.id = clips.id WHERE clips.visibility = 'public';

-- section: triggers
-- The titles that change here make top_clips out of date, as materialized views are; a restore makes it anew.
UPDATE clips SET comment_count = counted.comments FROM (SELECT clip_id, count(*) AS comments FROM comments GROUP BY clip_id) AS counted
WHERE counted.clip_id = clips.id AND clips.id <= 500;

CREATE FUNCTION count_comments() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE clips SET comment_count = comment_count + CASE TG_OP WHEN 'INSERT' THEN 1 ELSE -1 END WHERE id = coalesce(NEW.clip_id, OLD.clip_id);
    RETURN NULL;
END $$;
CREATE FUNCTION remember_clip() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO clip_history (clip_id, before, after) VALUES (OLD.id, jsonb_build_object('title', OLD.title), jsonb_build_object('title', NEW.title));
    RETURN NULL;
END $$;
CREATE TRIGGER comments_counted AFTER INSERT OR DELETE ON comments FOR EACH ROW EXECUTE FUNCTION count_comments();
CREATE TRIGGER clips_remembered AFTER UPDATE OF title ON clips FOR EACH ROW WHEN (OLD.title <> NEW.title) EXECUTE FUNCTION remember_clip();
CREATE TRIGGER clips_remembered_twice AFTER UPDATE ON clips FOR EACH ROW EXECUTE FUNCTION remember_clip();
ALTER TABLE clips DISABLE TRIGGER clips_remembered_twice;

INSERT INTO comments (clip_id, user_id, body, created_at)
SELECT 1 + i % 10, 1 + i % 20, 'first! (' || i || ')', timestamptz '2026-05-31' + i * interval '1 s' FROM generate_series(1, 40) AS i ORDER BY i;
DO $$
BEGIN
    FOR n IN 1..25 LOOP
        UPDATE clips SET title = title || ' [updated]' WHERE id = n;
    END LOOP;
END $$;

-- section: who may do what
-- Roles belong to the whole server: another database may have brought this one along already. Its password is `clipper`.
DO $$
BEGIN
    CREATE ROLE clipper_app LOGIN CONNECTION LIMIT 50 PASSWORD
        'SCRAM-SHA-256$4096:Y2xpcHBlci1kZW1vLXNhbHQ=$GTB+ZGpWi3LMpmrTixhdyzRd4lSvbEbVrgaDzx1txW8=:LUZUdVGsAZiv9Edb+d9k3yubUOmCbbhWPnK7seOG3R8=';
EXCEPTION WHEN duplicate_object THEN NULL;
END $$;
GRANT USAGE ON SCHEMA public, "Früher & später" TO clipper_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON clips, comments, votes, clip_tags, clip_views TO clipper_app;
GRANT SELECT (id, handle, display_name, bio), UPDATE (display_name, bio) ON users TO clipper_app;
GRANT SELECT ON clip_feed, top_clips, "Früher & später"."Clips ""von gestern"" — it's 100 % \ ☃" TO clipper_app WITH GRANT OPTION;
GRANT SELECT, INSERT, UPDATE, DELETE ON private_notes TO clipper_app;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO clipper_app;
GRANT SELECT ON LARGE OBJECT 3000002 TO clipper_app;
REVOKE EXECUTE ON FUNCTION count_comments(), remember_clip() FROM PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO clipper_app;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

ALTER TABLE private_notes ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own_notes ON private_notes TO clipper_app USING (owner_id = current_setting('clipper.user_id', true)::bigint);
CREATE POLICY short_notes ON private_notes AS RESTRICTIVE FOR INSERT TO clipper_app WITH CHECK (length(body) < 10000);

-- Traps for whoever compares two databases by what they print: a dump must pin all of these.
DO $$
BEGIN
    EXECUTE format('ALTER DATABASE %I SET TimeZone = ''America/New_York''', current_database());
    EXECUTE format('ALTER DATABASE %I SET DateStyle = ''SQL, DMY''', current_database());
    EXECUTE format('ALTER DATABASE %I SET bytea_output = ''escape''', current_database());
    EXECUTE format('ALTER DATABASE %I SET statement_timeout = ''60s''', current_database());
    EXECUTE format('ALTER ROLE clipper_app IN DATABASE %I SET work_mem = ''8MB''', current_database());
    EXECUTE format('COMMENT ON DATABASE %I IS %L', current_database(), 'clips, and what people think of them');
END $$;

COMMENT ON TABLE clips IS 'what people share; its "quotes", it''s apostrophes and \backslashes are part of the comment';
COMMENT ON COLUMN clips.metadata IS 'what the camera said';
COMMENT ON INDEX clips_newest IS 'serves the front page';
COMMENT ON FUNCTION clip_score(bigint, bigint) IS 'three for a vote up, minus one for a vote down';
COMMENT ON CONSTRAINT clips_lasting ON clips IS 'a clip lasts';
COMMENT ON SCHEMA "Früher & später" IS E'two\nlines';

-- section: temporary things away
DROP TABLE words, noun_phrases, verb_phrases, sentences, transcripts;
DROP FUNCTION pg_temp.pick(bigint, integer, integer), pg_temp.famous(bigint, integer, integer), pg_temp.noise(bigint, numeric);
RESET TimeZone;
RESET work_mem;
RESET maintenance_work_mem;

-- section: vacuum
VACUUM (ANALYZE);
