-- The database of benchmarks/physical.py: clips and those who share them, five indexes on the large table. Every value is a
-- function of its row's number, so that two runs make the same rows; `:clips` and `:users` are row counts.
SET work_mem = '256MB';
SET maintenance_work_mem = '512MB';

CREATE FUNCTION pg_temp.pick(row_number bigint, purpose integer, choices integer) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN 1 + ((hashint8extended(row_number, purpose) & 2147483647) % choices)::integer;

CREATE TEMP TABLE words AS
SELECT id::integer, word FROM regexp_split_to_table(
    'able about across again airport album alone always ancient answer apple around artist audience baker balloon band basket beach because
    before behind believes bicycle bird blue bottle brave bridge brings broken brother building camera candle careful carries castle catches
    ceiling changes chases cheerful chicken choir cinema circus city clever climbs cloud coast coffee collects comedian concert corner
    curious dancer dances desert discovers doctor dolphin dragon draws drummer early eagle editor electric elephant empty engine evening
    explains explores famous farmer festival film finds fire flight flower foggy follows forest forgets fountain friend frozen funny garden
    gentle ghost giraffe glacier golden goose great green guitar harbour hears helps hidden hill horse hospital house hurricane imagines
    island jacket jazz journey judge juggler jungle keeps keyboard kitchen kitten knows lamp late laughs lazy learns library lighthouse
    little lonely loud lucky magician market meadow meets melody mighty mirror misses monkey moon morning mountain museum mushroom narrow
    never night noisy nurse ocean octopus office old opens orange orchestra owl painter pancake parade parrot patient penguin photographs
    pianist pigeon pilot pirate planet plays pond potato proud puppet puppy quiet rabbit race radio railway rain really recipe remembers
    rescues river robot rocket roof royal runner sailor salty sandwich school scientist secret sells shadow shark shop silent silver
    singer sister skateboard sleeps slow small snail snow somehow song soup spider stadium star station steals storm strange street student
    summer sunset surfer swimmer table tall teacher telescope tender theatre thunder tiger tired together tower train tree trick trumpet
    tunnel turtle umbrella uncle unusual valley van village violin visits volcano waiter warm watches waterfall wave wedding whale wild
    window winter wolf wonderful writer yacht yellow young zebra', '\s+') WITH ORDINALITY AS listed (word, id);

CREATE TEMP TABLE sentences AS
SELECT sentence AS id, initcap(min(word)) || ' ' || string_agg(word, ' ' ORDER BY place) AS text
FROM generate_series(1, 40000) AS sentence
CROSS JOIN generate_series(1, 5 + pg_temp.pick(sentence, 1, 8)) AS place
JOIN words ON words.id = pg_temp.pick(sentence * 16 + place, 2, (SELECT count(*)::integer FROM words))
GROUP BY sentence;
ANALYZE sentences;

CREATE TABLE users (id bigint PRIMARY KEY, handle text NOT NULL, settings jsonb NOT NULL, joined_at timestamptz NOT NULL);
INSERT INTO users
SELECT i, 'user_' || i, jsonb_build_object('theme', (ARRAY['dark', 'light', 'system'])[pg_temp.pick(i, 3, 3)], 'volume', pg_temp.pick(i, 4, 100)),
    timestamptz '2024-01-01 00:00+00' + i * interval '1 minute'
FROM generate_series(1, :users) AS i;

CREATE TABLE clips (
    id bigint NOT NULL,
    public_id uuid NOT NULL,
    user_id bigint NOT NULL,
    title text NOT NULL,
    description text NOT NULL,
    metadata jsonb NOT NULL,
    view_count integer NOT NULL,
    published_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
INSERT INTO clips
SELECT i, md5('clip ' || i)::uuid, pg_temp.pick(i, 10, :users), title.text,
    concat_ws('. ', first.text, second.text, third.text, fourth.text, fifth.text) || '.',
    jsonb_build_object('codec', (ARRAY['h264', 'av1', 'vp9'])[pg_temp.pick(i, 11, 3)], 'bitrate_kbps', pg_temp.pick(i, 12, 9000),
        'fps', 30 * pg_temp.pick(i, 13, 4), 'checksum', md5(i::text), 'camera', pg_temp.pick(i, 14, 300)),
    pg_temp.pick(i, 15, 1000000), timestamptz '2025-01-01 00:00+00' + pg_temp.pick(i, 16, 40000000) * interval '1 second',
    timestamptz '2026-06-01 00:00+00'
FROM generate_series(1, :clips) AS i
JOIN sentences AS title ON title.id = pg_temp.pick(i, 20, 40000)
JOIN sentences AS first ON first.id = pg_temp.pick(i, 21, 40000)
JOIN sentences AS second ON second.id = pg_temp.pick(i, 22, 40000)
JOIN sentences AS third ON third.id = pg_temp.pick(i, 23, 40000)
JOIN sentences AS fourth ON fourth.id = pg_temp.pick(i, 24, 40000)
JOIN sentences AS fifth ON fifth.id = pg_temp.pick(i, 25, 40000);

ALTER TABLE clips ADD PRIMARY KEY (id);
CREATE UNIQUE INDEX ON clips (public_id);
CREATE INDEX ON clips (user_id, published_at);
CREATE INDEX ON clips (title);
CREATE INDEX ON clips (view_count);
