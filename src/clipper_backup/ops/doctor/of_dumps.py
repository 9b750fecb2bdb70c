"""Checks of what is in the repository: is there a good, new dump, and is nothing in the way of the next."""

from datetime import timedelta

from clipper_backup.errors import MissingError
from clipper_backup.kinds import NONE
from clipper_backup.ops.doctor.declared import Declaring, Surroundings
from clipper_backup.ops.dump.prune import last_prune
from clipper_backup.ops.findings import SKEW, Colour, Finding, green, red, yellow
from clipper_backup.ops.keys import read_identities, sealer_of, signer_of
from clipper_backup.ops.physical_status import keys_of
from clipper_backup.repository.leases import Held
from clipper_backup.repository.retention import GARBAGE_AGE
from clipper_backup.repository.root import open_repository
from clipper_backup.repository.verify_report import covered_share, never_in_turn, overdue
from clipper_backup.values import show_count, show_names, show_seconds, show_share, show_time

_HELD_TOO_LONG = timedelta(days=1)
_CHECKED_LONG_AGO = timedelta(days=30)


check = Declaring()


@check(
    "repository",
    "whether the store holds a repository that this version can read and write to",
    "check BACKUP_URL; the first `clipper-backup dump create` makes a repository",
    needs=["store"],
)
def _repository(here: Surroundings) -> Finding:
    open_repository(here.store, writing=True)
    status = here.status
    return green(f"{show_count(len(status.entries), 'dump')}, {len(status.good)} of them good")


@check(
    "newest dump",
    "whether each database has a good dump that is not older than DUMP_MAX_AGE_HOURS",
    "`clipper-backup dump create` takes one; then see why the job did not: its log, its schedule, whether it is suspended",
    needs=["repository"],
)
def _newest_dump(here: Surroundings) -> Finding:
    status = here.status
    if status.missing or not status.good:
        return red(f"no good dump holds {show_names(status.missing)}" if status.missing else "there is no good dump")
    oldest = min((each for each in status.newest if each.wanted), key=lambda each: each.taken_at)
    age = status.now - oldest.taken_at
    if -age > SKEW:
        return yellow(
            f"{oldest.summary.id} lies {show_seconds(-age.total_seconds())} ahead of the clock: nobody knows how old it is",
            "the check `clock` says which one runs wrong",
        )
    text = f"{oldest.summary.id} is {show_seconds(max(0.0, age.total_seconds()))} old"
    if age > timedelta(hours=here.settings.dump_max_age_hours):
        return red(f"{text}, and is the newest good dump of {show_names([oldest.database])}")
    if status.gone:
        return yellow(
            f"{text}; {show_names([each.database for each in status.gone])} is in older ones only",
            "see whether it was dropped or renamed; BACKUP_DATABASES says which there should be",
        )
    return green(text)


@check(
    "damaged dumps",
    "whether a committed dump lacks objects, or its summary cannot be read",
    "`clipper-backup dump verify ID` says more; `clipper-backup dump delete ID` removes one that nobody can use",
    needs=["repository"],
)
def _damaged_dumps(here: Surroundings) -> Finding:
    damaged = here.status.damaged
    if not damaged:
        return green("none")
    text = f"{len(damaged)}, the newest of them {damaged[-1].listed.dump_id}: {damaged[-1].problem}"
    committed = [entry for entry in here.status.entries if entry.listed.committed]
    return red(f"the newest dump is damaged ({text})") if damaged[-1] is committed[-1] else yellow(text)


_DAILY = 'run it daily, by cron: `0 5 * * *  clipper-backup verify --quiet`; in Kubernetes a CronJob with the args ["verify"]'


@check(
    "verify",
    "whether what is stored was read lately, all of it within VERIFY_CYCLE_DAYS, and no damage is known",
    f"`clipper-backup verify` looks at everything and reads its share; {_DAILY}",
    needs=["repository"],
)
def _verify(here: Surroundings) -> Finding:
    status = here.status
    report = status.verified
    if status.verified_unread is not None:
        unread = status.verified_unread  # of a newer version it stays as it is
        return red(unread.message, *(unread.hints or ("`clipper-backup verify` writes it anew",)))
    if report is None:
        committed = any(entry.listed.committed for entry in status.entries) or here.physical is not None
        return yellow("nothing was ever verified") if committed else green("there is nothing to verify yet")
    ago = show_seconds(max(0.0, (status.now - report.ended_at).total_seconds()))
    if report.damage:
        return red(
            f"{show_count(report.damaged, 'thing is', 'things are')} damaged, {ago} ago: {report.damage[0].text}", _LOOK_AGAIN
        )
    if (behind := overdue(report, status.now)) is not None:
        text = f"what was stored {show_seconds(behind.total_seconds())} ago was not all read since"
        return yellow(f"{text}: more than VERIFY_CYCLE_DAYS ({report.cycle_days})")
    share = show_share(covered_share(report, status.now))
    text = f"{ago} ago; {share} of all bytes read within {show_count(report.cycle_days, 'day')}"
    if never := never_in_turn(report):
        return yellow(f"{text}, and never in turn: {', '.join(never)}", _NEVER)
    return green(text)


_NEVER = "`clipper-backup verify` says what keeps it from that: a key that is not at hand, an error; or only samples were read"
_LOOK_AGAIN = "`clipper-backup verify` looks again, and says what to type next"


@check(
    "unfinished dumps",
    "whether a run was killed and its objects are still there after a day",
    "`clipper-backup prune` removes what is older than a day; see why the run ended: its log, its time limit, its memory",
    needs=["repository"],
)
def _unfinished_dumps(here: Surroundings) -> Finding:
    status = here.status
    left = [entry for entry in status.unfinished if status.now - entry.listed.last_written_at > GARBAGE_AGE]
    if left:
        return yellow(f"{len(left)}, the newest of them {left[-1].listed.dump_id}")
    return green(f"{len(status.unfinished)}, none older than a day" if status.unfinished else "none")


@check(
    "last prune",
    "whether what the last prune left for the next can be read: no other runs before",
    "look at retention.json in the store",
    needs=["repository"],
)
def _last_prune(here: Surroundings) -> Finding:
    mark = last_prune(here.store)
    return green("never pruned" if mark is None else f"last pruned {show_time(mark.pruned_at)}")


@check(
    "lease",
    "whether somebody holds the right to dump, to take base backups or snapshots, or to prune, and still lives",
    "look for the job that holds it; a dead one's lease frees itself after LEASE_SECONDS",
    needs=["repository"],
)
def _lease(here: Surroundings) -> Finding:
    found = [_of_lease(here, held) for held in here.status.leases.values()]
    worst = max(found, key=lambda each: [*Colour].index(each.colour), default=None)
    return green("free") if worst is None else worst


def _of_lease(here: Surroundings, held: Held) -> Finding:
    status = here.status
    silent = status.now - held.last_sign_at
    if silent.total_seconds() > held.stale_after(here.settings.lease_seconds):
        return yellow(f"left by {held.who}, silent for {show_seconds(silent.total_seconds())}: the next run takes it over")
    if status.now - held.taken_at > _HELD_TOO_LONG:
        return red(f"held by {held.who} since {show_time(held.taken_at)}, and it lives: no other run gets it")
    return green(f"held by {held.who} since {show_time(held.taken_at)}")


@check(
    "holds",
    "whether every hold keeps a dump that is there",
    "`clipper-backup release ID` takes a hold back",
    needs=["repository"],
)
def _holds(here: Surroundings) -> Finding:
    status = here.status
    there = {entry.listed.dump_id for entry in status.entries}
    gone = [str(dump_id) for dump_id in sorted(status.holds) if dump_id not in there]
    if gone:
        return yellow(f"{len(gone)} keep a dump that is not there: {gone[-1]}")
    return green(show_count(len(status.holds), "dump is held", "dumps are held") if status.holds else "none")


@check(
    "encryption",
    "whether the next dump is sealed, as the newest one is",
    "set ENCRYPTION_RECIPIENTS to public age keys; `clipper-backup key generate` makes one",
    needs=["repository"],
)
def _encryption(here: Surroundings) -> Finding:
    sealer, last = sealer_of(here.settings), here.last
    if sealer is None:
        if last is not None and last.sealed and here.settings.encryption_recipients != (NONE,):
            return red("the newest dump is sealed, and no ENCRYPTION_RECIPIENTS are set: the next run refuses to dump")
        return yellow("dumps are plain: whoever can read the store, or a copy of it, can read every row in them")
    if last is not None and not last.sealed:
        return yellow("the next dump is sealed; the newest one is plain", "`clipper-backup dump create` takes a sealed one now")
    return green(f"sealed to {show_count(len(sealer.recipients), 'key')}")


@check(
    "recipients",
    "whether there is a second key that opens dumps when the first one is lost",
    "add the public key of a recovery key that is kept offline to ENCRYPTION_RECIPIENTS",
    needs=["encryption"],
)
def _recipients(here: Surroundings) -> Finding:
    sealer = sealer_of(here.settings)
    if sealer is None:
        return green("plain dumps open without a key")
    if len(set(sealer.recipients)) == 1:
        return yellow("one key opens dumps: when it is lost, so is every dump")
    return green(f"{show_count(len(set(sealer.recipients)), 'key')}, each of which opens dumps alone")


@check(
    "identity",
    "whether ENCRYPTION_IDENTITY_FILE, where it is set, opens the newest good dump of each database, and base backup",
    "set ENCRYPTION_IDENTITY_FILE to a file with a key that backups are sealed to; where none are read, leave it out",
    needs=["repository"],
)
def _identity(here: Surroundings) -> Finding:
    path = here.settings.encryption_identity_file
    if path is None:
        return green("ENCRYPTION_IDENTITY_FILE is not set: no sealed backup is read from here")
    have = {identity.recipient for identity in read_identities(path)}
    closed = [summary for summary in here.status.sealed if have.isdisjoint(summary.recipients)]
    if closed:
        return red(f"{closed[-1].id} is sealed to other keys: {path} holds {', '.join(sorted(have))}")
    newest = None if here.physical is None else here.physical.newest
    of_base = [] if newest is None or newest.summary is None else newest.summary.recipients
    if newest is not None and of_base and have.isdisjoint(of_base):
        held = ", ".join(sorted(have))
        return red(f"the base backup {newest.listed.backup_id} is sealed to other keys: {path} holds {held}")
    opens = ", the newest backups open with them" if here.status.sealed or of_base else ""
    return green(f"{path} holds {show_count(len(have), 'key')}{opens}")


@check(
    "key check",
    "when it was last recorded that a key opens what is stored, for each key of the newest good dumps and base backup",
    "`clipper-backup key check --identity FILE`, wherever that key is; monthly",
    needs=["repository"],
)
def _key_check(here: Surroundings) -> Finding:
    status, keys = here.status, keys_of(here.status, here.physical)
    newest = None if here.physical is None else here.physical.newest
    if not keys:
        there = status.good or newest is not None
        return green("the newest good backups open without a key" if there else "there is no good backup to open")
    moments = {key.recipient: key.check.checked_at for key in keys if key.check is not None}
    if unread := [key.unread for key in keys if key.unread is not None]:
        return yellow(unread[0], "`clipper-backup key check --identity FILE` writes it anew")
    if not moments:
        sealed = status.sealed[-1].id if status.sealed else f"the base backup {'' if newest is None else newest.listed.backup_id}"
        return red(f"{sealed} is sealed, and no check of a key is recorded")
    if ahead := [recipient for recipient, moment in moments.items() if moment - status.now > SKEW]:
        return yellow(
            f"the check of {ahead[0]} is dated {show_time(moments[ahead[0]])}, ahead of the clock: nobody knows when it was",
            "`clipper-backup key check --identity FILE` records it anew; the check `clock` says whether one runs wrong",
        )
    never = [key.recipient for key in keys if key.recipient not in moments]
    if never:
        return yellow(f"no check of {never[0]} is recorded")
    recipient, moment = min(moments.items(), key=lambda each: each[1])
    text = f"{recipient} opened the newest backups {show_seconds(max(0.0, (status.now - moment).total_seconds()))} ago"
    return yellow(text) if status.now - moment > _CHECKED_LONG_AGO else green(text)


@check(
    "signing",
    "whether the next dump is signed by a key that is trusted, and no dump is by another",
    "`clipper-backup key generate --signing` makes a key; SIGNING_KEY_FILE where dumps are made, SIGNATURE_KEYS everywhere",
    needs=["store"],
)
def _signing(here: Surroundings) -> Finding:
    try:
        signing = signer_of(here.settings)
    except MissingError as error:
        return red(error.message, *error.hints)
    if signing is None:
        if here.last is not None and here.last.signed and here.settings.signing_key_file is None:
            return red("the newest dump is signed, and no SIGNING_KEY_FILE is set: the next run refuses to dump")
        return yellow("dumps are not signed: whoever can write into the store can make one that is restored")
    untrusted = here.status.untrusted
    entries = [entry for entry in here.status.entries if entry.listed.committed]
    if untrusted and untrusted[-1] is entries[-1]:
        return red(
            f"the newest dump is not trusted: {untrusted[-1].problem}", "take another dump; see who could write into the store"
        )
    if untrusted:
        return yellow(
            f"{show_count(len(untrusted), 'dump is not trusted', 'dumps are not trusted')},"
            f" the newest of them {untrusted[-1].listed.dump_id}"
        )
    return green(f"signed by {signing.public}")


CHECKS = check.all
