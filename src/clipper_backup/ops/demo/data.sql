-- The rows of the Clipper database. Every value is a function of its row's number, so that two runs make the same rows
-- whatever the planner does; `:name` stands for a row count that grows with the scale.

-- section: vocabulary
SET TimeZone = 'UTC';
SET work_mem = '128MB';
SET maintenance_work_mem = '256MB';

-- A number from 1 to $3 that looks random, and always is the same for the same row and purpose.
CREATE FUNCTION pg_temp.pick(row_number bigint, purpose integer, choices integer) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN 1 + ((hashint8extended(row_number, purpose) & 2147483647) % choices)::integer;
-- The same, with small numbers far more often than large ones, as fame goes.
CREATE FUNCTION pg_temp.famous(row_number bigint, purpose integer, choices integer) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN 1 + (choices * power((hashint8extended(row_number, purpose) & 2147483647) / 2147483648.0::float8, 3))::integer % choices;
-- Bytes that do not compress, as those of pictures do not.
CREATE FUNCTION pg_temp.noise(row_number bigint, kibibytes numeric) RETURNS bytea
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (SELECT string_agg(sha512(int8send(row_number * 65536 + n)), '' ORDER BY n) FROM generate_series(1, ceil(kibibytes * 16)::integer) AS n);

CREATE TEMP TABLE words AS
SELECT kind, word, row_number() OVER (PARTITION BY kind ORDER BY word) AS id
FROM (VALUES
    ('adjective', 'able ancient angry awkward bitter blue bold brave brief bright broken busy calm careful cheap clean clever cold common cool
        curious damp dark deep distant dry dull eager early easy electric empty endless exact famous fast final foggy foreign fresh friendly
        frozen funny gentle giant golden grand great green grey happy harsh heavy hidden hollow honest huge humble icy idle late lazy
        light little local lonely long loose loud lucky mad merry mighty modern muddy narrow neat new nice noisy odd old open orange pale patient
        perfect plain polite poor proud purple quick quiet rare raw ready real red rich ripe rough round royal sad safe salty sandy secret serious
        shallow sharp short shy silent silly silver simple slow small smart smooth soft solid sour steady steep strange strong sudden sunny super
        sweet swift tall tame tender terrible thick thin tiny tired tough true ugly unusual useful usual vast warm weak weary weird wet white wide
        wild wise wonderful wooden wrong yellow young'),
    ('noun', 'accident actor airport alarm album animal answer apartment apple artist audience avenue baby band bank barn baseball basket bear
        beach bicycle bird birthday boat book border bottle boy bread bridge brother building bus cabin cake camera camp candle car castle cat
        ceiling chair champion cheese chef chicken choir church cinema city classroom cliff cloud coach coast coffee comedian computer concert
        corner costume couple cousin cow crowd dance dancer daughter desert dinner doctor dog dolphin door dragon drone drummer duck eagle
        editor elephant engine episode evening experiment farmer father festival film fire fish flight flower football forest fountain fox friend
        frog game garage garden ghost giraffe girl glacier glove goal goat goose guest guitar hamster harbour hat hill horse hospital hotel house
        hurricane interview island jacket jazz jelly joke journey judge juggler jungle keyboard king kitchen kite kitten ladder lake lamp laptop
        lawyer library lighthouse lion lizard magician map market match meadow melody minute mirror monkey moon mother motorbike mountain mouse
        museum mushroom neighbour night nurse ocean octopus office orchestra owl painter pancake panda parade parent park parrot party penguin
        phone pianist picnic pigeon pilot pirate pizza planet player pond pony postcard potato prank puppy puzzle queen rabbit race radio railway
        rain recipe referee restaurant river robot rocket roof runner sailor sandwich scene school scientist seagull shadow shark sheep ship shop
        singer sister skateboard snail snake snowman soldier song soup spider squirrel stadium staircase star station storm stranger street student
        summer sunset surfer swimmer table teacher team teddy telescope theatre thunder tiger tower town tractor trailer train tree trick trumpet
        tunnel turtle umbrella uncle valley van village violin visitor volcano waiter waterfall wave wedding weekend whale wheel window winner
        winter witness wolf woman writer yacht zebra zoo'),
    ('verb', 'admires answers avoids believes blames blocks borrows breaks brings builds buys calls carries catches celebrates changes chases
        cheers chooses cleans climbs collects considers cooks copies counts covers crosses dances-with defends describes destroys discovers draws
        drives drops enjoys escapes examines explains explores fears feeds fights films finds fixes follows forgets forgives freezes frightens
        greets guards guesses hates hears helps hides hits hugs imagines imitates improves interrupts invents invites joins judges jumps-over keeps
        kicks knows launches leads learns leaves likes loses loves measures meets misses moves needs notices offers opens orders outruns paints
        passes photographs pleases pulls pushes questions raises reaches reads records refuses remembers rescues reviews rides saves scares sees
        sells shows sings-to steals stops studies surprises teaches tells thanks throws touches trains trusts understands visits warns wants
        washes watches welcomes wins'),
    ('manner', 'again almost always anyway at-last at-night badly before-lunch before-sunrise by-accident by-mistake carefully cheerfully
        in-slow-motion in-the-rain in-the-snow just-once live loudly never nobody-knows-why on-a-monday on-camera on-purpose on-the-way-home
        once-more politely quickly quietly really slowly somehow sometimes successfully suddenly three-times today together tomorrow too-late
        twice unexpectedly with-both-hands with-style without-a-plan without-looking yesterday')
) AS list (kind, listed), regexp_split_to_table(listed, '\s+') AS word;

CREATE TEMP TABLE noun_phrases AS
SELECT (row_number() OVER (ORDER BY article, adjective.id, noun.id))::integer AS id, concat_ws(' ', article, adjective.word, noun.word) AS words
FROM (VALUES ('the'), ('my'), ('their')) AS articles (article), words AS adjective, words AS noun
WHERE adjective.kind = 'adjective' AND noun.kind = 'noun' AND (hashint8(adjective.id * 1000 + noun.id) & 3) = 0;

CREATE TEMP TABLE verb_phrases AS
SELECT (row_number() OVER (ORDER BY verb.id, manner.id))::integer AS id, replace(concat_ws(' ', verb.word, manner.word), '-', ' ') AS words
FROM words AS verb, words AS manner WHERE verb.kind = 'verb' AND manner.kind = 'manner';
ANALYZE noun_phrases, verb_phrases;

CREATE TEMP TABLE sentences AS
SELECT i::integer AS id, upper(left(who.words, 1)) || substr(who.words, 2) || ' ' || does.words || ' ' || whom.words AS words
FROM generate_series(1, :sentences) AS i
JOIN noun_phrases AS who ON who.id = pg_temp.pick(i, 1, 30000)
JOIN verb_phrases AS does ON does.id = pg_temp.famous(i, 2, 5000)
JOIN noun_phrases AS whom ON whom.id = pg_temp.famous(i, 3, 30000);
ANALYZE sentences;

-- section: users
INSERT INTO users (id, public_id, handle, email, display_name, bio, interests, settings, reputation, avatar, birthday, joined_at)
SELECT i, md5('user ' || i)::uuid, adjective.word || '_' || noun.word || '_' || i,
    adjective.word || '.' || noun.word || i || '@' || (ARRAY['Example.org', 'mail.example', 'post.example', 'clipper.example'])[pg_temp.famous(i, 12, 4)],
    CASE WHEN i % 10 > 0 THEN initcap(adjective.word || ' ' || noun.word) END,
    CASE WHEN i % 4 > 0 THEN bio.words || '. ' || more.words || '!' END,
    (ARRAY[noun.word, adjective.word, 'clips', 'music', 'cats', 'games'])[1:i % 5],
    jsonb_build_object('theme', (ARRAY['dark', 'light', 'system'])[pg_temp.famous(i, 13, 3)], 'volume', pg_temp.pick(i, 14, 100) / 100.0,
        'notifications', jsonb_build_object('email', i % 3 = 0, 'push', i % 2 = 0, 'digest', NULL)),
    round(pg_temp.famous(i, 15, 9000000) / 100.0, 2),
    CASE WHEN i % 8 = 0 THEN pg_temp.noise(i, pg_temp.pick(i, 16, 24) / 8.0) END,
    CASE WHEN i % 5 > 0 THEN date '1960-01-01' + pg_temp.pick(i, 17, 17000) END,
    timestamptz '2023-01-01' + i * interval '7 minutes' + pg_temp.pick(i, 18, 400000) * interval '1 ms'
FROM generate_series(1, :users) AS i
JOIN words AS adjective ON adjective.kind = 'adjective' AND adjective.id = pg_temp.pick(i, 10, 130)
JOIN words AS noun ON noun.kind = 'noun' AND noun.id = pg_temp.pick(i, 11, 270)
JOIN sentences AS bio ON bio.id = pg_temp.pick(i, 19, :sentences)
JOIN sentences AS more ON more.id = pg_temp.pick(i, 20, :sentences);

-- section: clips
INSERT INTO clips (id, public_id, user_id, title, description, visibility, duration_seconds, size, width, height, labels, metadata, published_at)
SELECT i, md5('clip ' || i)::uuid, pg_temp.famous(i, 30, :users), title.words,
    CASE WHEN i % 7 > 0 THEN concat_ws('. ', first.words, second.words, CASE WHEN i % 2 = 0 THEN third.words END, CASE WHEN i % 3 = 0 THEN fourth.words END) || '.' END,
    (ARRAY['public', 'public', 'public', 'unlisted', 'private'])[pg_temp.pick(i, 31, 5)]::visibility,
    pg_temp.pick(i, 32, 180000) / 1000.0,
    CASE WHEN i % 11 > 0 THEN ROW(w, h)::dimensions END, w, h,
    (ARRAY['funny', 'cats', 'sport', 'music', 'fail', 'news', 'cooking', 'travel'])[pg_temp.pick(i, 33, 4):3 + pg_temp.pick(i, 34, 5)],
    jsonb_build_object('codec', (ARRAY['h264', 'av1', 'vp9'])[pg_temp.famous(i, 35, 3)], 'bitrate_kbps', pg_temp.pick(i, 36, 9000), 'fps', 30 * pg_temp.famous(i, 37, 4),
        'camera', camera.word, 'location', CASE WHEN i % 3 = 0 THEN jsonb_build_object('lat', pg_temp.pick(i, 38, 180000) / 1000.0 - 90, 'lon', pg_temp.pick(i, 39, 360000) / 1000.0 - 180) END,
        'checksum', md5(i::text)),
    CASE WHEN i % 13 > 0 THEN timestamptz '2025-07-01' + i * (interval '300 days' / :clips) + pg_temp.pick(i, 40, 500000) * interval '1 ms' END
FROM generate_series(1, :clips) AS i
CROSS JOIN LATERAL (VALUES ((ARRAY[640, 1280, 1920, 3840])[pg_temp.pick(i, 41, 4)], (ARRAY[360, 720, 1080, 2160])[pg_temp.pick(i, 42, 4)])) AS size (w, h)
JOIN words AS camera ON camera.kind = 'noun' AND camera.id = pg_temp.famous(i, 43, 270)
JOIN sentences AS title ON title.id = pg_temp.pick(i, 44, :sentences)
JOIN sentences AS first ON first.id = pg_temp.pick(i, 45, :sentences)
JOIN sentences AS second ON second.id = pg_temp.pick(i, 46, :sentences)
JOIN sentences AS third ON third.id = pg_temp.pick(i, 47, :sentences)
JOIN sentences AS fourth ON fourth.id = pg_temp.pick(i, 48, :sentences);

-- section: transcripts
-- Long enough to be kept out of line and compressed by PostgreSQL.
CREATE TEMP TABLE transcripts AS
SELECT clip_id, string_agg(words, E'.\n' ORDER BY line) AS transcript
FROM generate_series(20, :clips, 20) AS clip_id
CROSS JOIN generate_series(1, 40 + pg_temp.pick(clip_id, 50, 120)) AS line
JOIN sentences ON sentences.id = pg_temp.pick(clip_id * 200 + line, 51, :sentences)
GROUP BY clip_id;
UPDATE clips SET transcript = transcripts.transcript FROM transcripts WHERE transcripts.clip_id = clips.id;

-- section: tags
INSERT INTO tags (id, name, parent_id)
SELECT id, initcap(word), CASE WHEN id > 20 THEN pg_temp.famous(id, 60, 20) END FROM words WHERE kind = 'noun';
INSERT INTO clip_tags (clip_id, tag_id)
SELECT clip_id, 1 + (pg_temp.famous(clip_id, 61, 90) + n * 89) % 270
FROM generate_series(1, :clips) AS clip_id, generate_series(1, pg_temp.pick(clip_id, 62, 5)) AS n WHERE clip_id % 9 > 0;

-- section: votes
-- The step is a prime larger than any number of users, so nobody votes twice on a clip.
INSERT INTO votes (clip_id, user_id, value, voted_at)
SELECT clip_id, 1 + (pg_temp.pick(clip_id, 70, 1000000) + n * 15485863::bigint) % :users, CASE WHEN pg_temp.pick(clip_id + n, 71, 5) = 1 THEN -1 ELSE 1 END,
    timestamptz '2025-07-01' + clip_id * (interval '300 days' / :clips) + pg_temp.famous(clip_id::bigint * 4096 + n, 72, 5000000) * interval '1 s'
FROM generate_series(1, :clips) AS clip_id, generate_series(1, least(:users, pg_temp.famous(clip_id, 73, 48))) AS n;

-- section: comments
-- Four neighbours are one thread: the first opens it, each other answers one before it.
INSERT INTO comments (id, clip_id, user_id, parent_id, body, sentiment, created_at, edited_at) OVERRIDING SYSTEM VALUE
SELECT i, pg_temp.famous(i / 4, 80, :clips), pg_temp.famous(i, 81, :users), CASE WHEN i % 4 > 0 AND i > 4 THEN i - pg_temp.pick(i, 82, i % 4) END,
    CASE pg_temp.pick(i, 83, 4)
        WHEN 1 THEN first.words
        WHEN 2 THEN first.words || '. ' || second.words || '.'
        WHEN 3 THEN '@' || (i % 1000) || ' ' || first.words || '?! ' || second.words || '… ' || third.words || ' 😀'
        ELSE lower(first.words) || E'\n' || second.words || ' ' || (i % 97) || ' %'
    END,
    CASE WHEN i % 6 > 0 THEN pg_temp.pick(i, 84, 2000) / 1000.0 - 1 END,
    timestamptz '2025-07-02' + i * (interval '300 days' / :comments), CASE WHEN i % 23 = 0 THEN timestamptz '2026-05-01' + i * interval '1 s' END
FROM generate_series(1, :comments) AS i
JOIN sentences AS first ON first.id = pg_temp.pick(i, 85, :sentences)
JOIN sentences AS second ON second.id = pg_temp.pick(i, 86, :sentences)
JOIN sentences AS third ON third.id = pg_temp.pick(i, 87, :sentences);

-- section: views
INSERT INTO clip_views (clip_id, user_id, viewed_at, watched, country, referrer, address)
SELECT pg_temp.famous(i, 90, :clips), CASE WHEN i % 3 > 0 THEN pg_temp.famous(i, 91, :users) END,
    timestamptz '2025-12-20' + i * (interval '170 days' / :clip_views) + pg_temp.pick(i, 92, 900000) * interval '1 ms',
    pg_temp.famous(i, 93, 180000) * interval '1 ms',
    (ARRAY['DE', 'US', 'FR', 'BR', 'IN', 'JP', NULL])[pg_temp.famous(i, 94, 7)],
    CASE WHEN i % 4 = 0 THEN 'https://' || (ARRAY['search.example', 'news.example', 'chat.example'])[pg_temp.famous(i, 95, 3)] || '/' || pg_temp.famous(i, 96, 5000) END,
    CASE WHEN i % 16 > 0 THEN inet '10.0.0.0' + pg_temp.famous(i, 97, 16000000) ELSE inet '2001:db8::' + pg_temp.pick(i, 97, 2000000000) END
FROM generate_series(1, :clip_views) AS i;

-- section: large objects
-- Sizes around the 2048 bytes that PostgreSQL keeps in one row of pg_largeobject, and one object with a hole.
INSERT INTO attachments (id, clip_id, name, byte_count, content)
SELECT i, pg_temp.pick(i, 100, :clips), 'attachment ' || i || '.bin', octet_length(bytes), lo_from_bytea(3000000 + i::integer, bytes)
FROM generate_series(1, 48) AS i
CROSS JOIN LATERAL (SELECT CASE i WHEN 1 THEN '' WHEN 2 THEN '\x00' WHEN 3 THEN substr(pg_temp.noise(i, 3), 1, 2047)
    WHEN 4 THEN pg_temp.noise(i, 2) WHEN 5 THEN substr(pg_temp.noise(i, 3), 1, 2049)
    ELSE CASE WHEN i % 2 = 0 THEN pg_temp.noise(i, i * 3) ELSE convert_to(repeat('frame ' || i || ' of a clip; ', i * 200), 'UTF8') END END) AS contents (bytes);
SELECT lo_put(3000006, 200000, 'after the hole');
UPDATE attachments SET byte_count = octet_length(lo_get(content)) WHERE content = 3000006;
COMMENT ON LARGE OBJECT 3000001 IS 'an empty one';

-- section: unusual rows
INSERT INTO private_notes SELECT i, 1 + i % least(:users, 50), 'note ' || i || ': ' || words FROM sentences, generate_series(1, 200) AS i WHERE sentences.id = i % 90 + 1;
INSERT INTO media SELECT i, 'medium ' || i, timestamptz '2024-02-29 12:00+00' + i * interval '1 day' FROM generate_series(1, 50) AS i;
INSERT INTO media_audio (id, title, added_at, bitrate)
SELECT i, 'sound ' || i, timestamptz '2025-02-28 12:00+00' + i * interval '1 day', 32 * pg_temp.pick(i, 110, 10) FROM generate_series(51, 90) AS i;
INSERT INTO sessions SELECT md5('session ' || i)::uuid, 1 + i % :users, jsonb_build_object('page', i % 17) FROM generate_series(1, 300) AS i;
INSERT INTO ticks DEFAULT VALUES;
INSERT INTO ticks DEFAULT VALUES;
INSERT INTO ticks DEFAULT VALUES;
INSERT INTO maintenance VALUES ('[2026-01-10 02:00+00,2026-01-10 03:00+00)', 'disks'), ('[2026-02-14 02:00+00,)', 'love'), ('empty', 'nothing');
INSERT INTO "Früher & später"."Clips ""von gestern"" — it's 100 % \ ☃" VALUES
    (1, 12.50, E'tab\there'), (2, NULL, E'a line\nand another\r\n'), (3, 'NaN', '\.'), (4, 0, '\N'), (5, -1, ''), (6, 1e20, 'Ünï©ødé ☃ 漢字 עברית 🎬');

INSERT INTO edge_values (id, number, float, small_float, day, moment, local_moment, length_of_time) VALUES
    (1, 'NaN', 'NaN', 'NaN', 'infinity', 'infinity', 'infinity', '0'),
    (2, 'Infinity', 'Infinity', 'Infinity', '-infinity', '-infinity', '-infinity', '-178000000 years'),
    (3, '-Infinity', '-Infinity', '-Infinity', '4713-01-01 BC', '4713-01-01 00:00+00 BC', '4713-01-01 00:00 BC', '1 year -1 month 1 day -00:00:00.000001'),
    (4, 0.000, '-0', '-0', '5874897-12-31', '294276-12-31 23:59:59.999999+00', '294276-12-31 23:59:59.999999', '178000000 years'),
    (5, repeat('9', 300)::numeric, 1.7976931348623157e308, 3.4028235e38, '2024-02-29', '2025-10-26 01:30:00.123456+00', '2025-10-26 02:30', '1 mon 30 days 24:00:00'),
    (6, ('0.' || repeat('0', 300) || '1')::numeric, 5e-324, 1e-45, '0001-01-01 BC', '1900-01-01 00:00:00+00', '1900-01-01 00:00', '-1 day +23:59:59'),
    (7, 0.1, 0.1, 0.1, NULL, NULL, NULL, NULL);
INSERT INTO edge_values (id, words, bytes, document, raw_document, matrix, during, address, bits, kind, size, place, lexemes) VALUES
    (11, '', '', 'null', 'null', '{}', 'empty', '0.0.0.0/0', '', 'public', '(,)', '(0,-0)', ''),
    (12, '\', '\x00ff5c0a0d09', '{}', '{"a":  1, "a": 2}', '[0:1][-1:0]={{1,2},{3,NULL}}', '(,)', '::/0', '0', 'private', '(1,)', '(NaN,Infinity)', '''it''''s'':1A,2B cats:3'),
    (13, '\.', decode(repeat('00', 5000), 'hex'), '{"deep": {"er": [1, [2, {"x": "\u00e9\ud83d\ude00"}]]}, "n": 1e100}', '[ 1,2 ]', '{{{1}}}', '(2026-01-01 00:00+00,2026-01-01 00:00+00]', 'fe80::/10', '10101010', 'unlisted', '(,-5)', '(1e-300,1e300)', NULL),
    (14, E'tab\tline\ncarriage\rbackslash\\ quote'' double" null \\N', pg_temp.noise(14, 20), '"\\"', '"\\"', '{NULL}', '[2026-01-01 00:00+00,infinity]', '10.1.0.0/16', repeat('01', 500)::varbit, NULL, NULL, NULL, NULL),
    (15, repeat('Ä€𝄞', 5000), NULL, (SELECT jsonb_object_agg('key ' || i, i) FROM generate_series(1, 2000) AS i), NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

-- section: counters
-- The rows brought their own numbers; the next ones come from here.
SELECT setval(pg_get_serial_sequence('users', 'id'), :users), setval(pg_get_serial_sequence('clips', 'id'), :clips),
    setval(pg_get_serial_sequence('comments', 'id'), :comments), setval(pg_get_serial_sequence('tags', 'id'), (SELECT max(id) FROM tags)),
    setval('invoice_numbers', 1000 + 7 * 530), setval('coupon_numbers', 77, false);
