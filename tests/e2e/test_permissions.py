"""Several users on one daemon: each sees and changes what its owner lets it, and nothing else.

The users are real to the operating system (root gives processes their ids); nothing that they
say about themselves counts.
"""

import pytest

import libmem
from libmem import CubeType, Governance, MemError, Quota
from libmem.abi.errors import Errno
from tests.e2e.actor import Actor, require_other_users
from tests.e2e.daemon import Daemon, eventually

OWNER, OTHER = 60_001, 60_002
GROUP = 60_010
WORD = "zyzzyva"

CONFIG = """
[listen]
mode = "0666"
[limits]
sessions_per_uid = 4
"""

MAKE_SECRET = f"""
client.make_namespace("/mine")
client.write("/mine/secret", "the word is {WORD}")
client.write("/mine/large", os.urandom(100_000), type="blob")
say("made")
hear()
"""


@pytest.fixture
def public(idle: Daemon) -> Daemon:
    """A daemon of root's that everybody may connect to."""
    require_other_users()
    idle.config = CONFIG
    idle.folder.chmod(0o755)
    idle.start()
    return idle


def _answers(daemon: Daemon, program: str, uid: int, *groups: int) -> list[str]:
    """All that a process of that user says."""
    answers: list[str] = []
    with Actor(daemon, program + '\nsay("the end")\n', uid, groups or (uid,)) as actor:
        while (word := actor.hear()) != "the end":
            answers.append(word)
        actor.end()
    return answers


def test_nobody_ends_what_he_may_not_change(public: Daemon) -> None:
    facts = """
from libmem import Governance
client.make_namespace("/mine")
client.make_namespace("/open", mode=0o755)
client.make_namespace("/commons", mode=0o777)
client.write("/mine/fact", "hidden")
client.write("/open/fact", "to be read", governance=Governance(mode=0o644))
client.write("/commons/fact", "to be read", governance=Governance(mode=0o644))
client.write("/commons/all", "for everybody", governance=Governance(mode=0o666))
say("made")
hear()
for name in ("/mine/fact", "/open/fact", "/commons/fact", "/commons/all"):
    say((client.stat(name).version, client.stat(name).descriptive.superseded_by != ""))
"""
    program = """
client.make_namespace("/theirs")
for name in ("/mine/fact", "/mine/absent", "/open/fact", "/commons/fact"):
    say(errno_of(client.write, "/theirs/news", "news", supersedes=(name,)))
    say(errno_of(client.write, "/theirs/news", "news", supersedes=("/commons/all", name)))
say(errno_of(client.stat, "/theirs/news"))
client.write("/theirs/news", "news", supersedes=("/commons/all",))
say(client.stat("/commons/all").descriptive.superseded_by == client.stat("/theirs/news").id.hex())
"""
    with Actor(public, facts, OWNER, (OWNER,)) as owner:
        owner.expect("made")
        refused = ["EACCES"] * 8
        assert _answers(public, program, OTHER) == [*refused, "ENOENT", "True"]
        owner.tell("look")
        assert [owner.hear() for _ in range(4)] == [
            *["(1, False)"] * 3,
            "(2, True)",
        ], "a refusal ends nothing, not even what may be ended"


def test_nothing_of_a_private_namespace_is_for_others(public: Daemon) -> None:
    program = f"""
from libmem.abi import calls as c
from libmem.abi.structs import Quota
name = "/mine/secret"
requests = [
    c.StatCube(name), c.StatCube(name + "@v1"), c.HistoryCube(name), c.ReadCube(name),
    c.MmapCube("/mine/large"), c.PinCube("/mine/large"), c.Explain(name),
    c.AdviseCube(name, "willneed"), c.Evict("/mine/large"), c.MigrateCube("/mine/large", "disk"),
    c.WriteCube(name, b"mine now"), c.WriteCube("/mine/new", b"x"), c.CreateCube("/mine/new", 10),
    c.SetHeader(name), c.UnlinkCube(name), c.RenameCube(name, "/mine/other"),
    c.StatCube("/mine/absent"), c.Readdir("/mine"), c.StatNamespace("/mine"),
    c.Search("{WORD}", "/mine"), c.Watch("/mine", 0),
]
say(",".join(sorted({{errno_of(client.call, request) for request in requests}})))
client.make_namespace("/theirs")
say(errno_of(client.rename, name, "/theirs/secret"))
say(errno_of(client.write, "/theirs/copy", "x", parents=(name,)))
say(errno_of(client.call, c.RemoveNamespace("/mine")))
say([stat.name for stat in client.readdir("/").namespaces])
say(client.search("{WORD}"))
say([event.name for event in client.watch("/", since_seq=0, timeout_s=0)])
say(client.log())
"""
    with Actor(public, MAKE_SECRET, OWNER, (OWNER,)) as owner:
        owner.expect("made")
        assert _answers(public, program, OTHER) == [
            "EACCES",
            "EACCES",
            "EACCES",
            "EPERM",
            "['/theirs']",
            "()",
            "['/theirs']",
            "()",
        ]
        owner.tell()
        owner.end()


def test_root_sees_everything(public: Daemon) -> None:
    with Actor(public, MAKE_SECRET, OWNER, (OWNER,)) as owner, public.connect() as root:
        owner.expect("made")
        assert root.read("/mine/secret").decode().endswith(WORD)
        assert [hit.name for hit in root.search(WORD)] == ["/mine/secret"]
        assert root.stat("/mine/secret").governance.owner_uid == OWNER
        assert root.stat_namespace("/mine").owner_uid == OWNER


def test_group_bits_are_for_members(public: Daemon) -> None:
    make = f"""
from libmem import Governance
client.make_namespace("/ours", 0o750)
client.write("/ours/page", "{WORD} for all of us", governance=Governance(mode=0o640))
client.write("/ours/notes", "{WORD} for us to change", governance=Governance(mode=0o660))
client.write("/ours/diary", "{WORD} for me", governance=Governance(mode=0o600))
say("made")
hear()
"""
    program = f"""
for name in ("page", "notes", "diary"):
    say(errno_of(client.read, "/ours/" + name) + " " + errno_of(client.write, "/ours/" + name, "x"))
say(errno_of(client.write, "/ours/new", "x") + " " + errno_of(client.unlink, "/ours/notes"))
say(errno_of(client.set_header, "/ours/notes"))
say(sorted(hit.name for hit in client.search("{WORD}")))
can_list = errno_of(client.readdir, "/ours") == "OK"
say([stat.name for stat in client.list("/ours")] if can_list else 0)
"""
    with Actor(public, make, OWNER, (GROUP, OWNER)) as owner:
        owner.expect("made")
        member = ["OK EACCES", "OK OK", "EACCES EACCES", "EACCES EACCES", "EPERM"]
        for groups in ((OTHER, GROUP), (GROUP,)):  # by a supplementary and by the primary group
            found = _answers(public, program, OTHER, *groups)
            assert found[:5] == member
            assert found[6] == "['/ours/notes', '/ours/page']"
        assert found[5] == "['/ours/page']"  # the notes were changed by then
        outside = _answers(public, program, OTHER, OTHER)
        assert outside == ["EACCES EACCES"] * 4 + ["EACCES", "[]", "0"]


def test_a_private_cube_in_a_shared_namespace_is_not_seen(public: Daemon) -> None:
    make = f"""
from libmem import Governance
client.make_namespace("/all", 0o777)
client.write("/all/folder/private", "{WORD}")
client.write("/all/open", "{WORD}", governance=Governance(mode=0o644))
client.unlink("/all/open")
client.write("/all/open", "{WORD}", governance=Governance(mode=0o644))
say("made")
hear()
"""
    program = f"""
say([stat.name for stat in client.list("/all", is_recursive=True)], )
say(client.readdir("/all").folders)
say([hit.name for hit in client.search("{WORD}", under="/all")])
say(sorted({{event.name for event in client.watch("/all", since_seq=0, timeout_s=0)}}))
say(errno_of(client.read, "/all/folder/private"))
say(errno_of(client.write, "/all/folder/private", "x"))
say(errno_of(client.rename, "/all/open", "/all/taken"))
say([name for name, _ in client.log()])
"""
    with Actor(public, make, OWNER, (OWNER,)) as owner:
        owner.expect("made")
        assert _answers(public, program, OTHER) == [
            "['/all/open']",
            "()",
            "['/all/open']",
            "['/all', '/all/open']",
            "EACCES",
            "EACCES",
            "EACCES",
            "[]",
        ]


def test_only_the_administrator_administrates(public: Daemon) -> None:
    program = """
from libmem import Quota, Governance
client.make_namespace("/mine")
client.write("/mine/x", "x")
say(errno_of(client.set_quota, "/mine", Quota(cubes=1000)))
say(errno_of(lambda: list(client.fsck())))
say(errno_of(client.shutdown))
say(errno_of(client.write, "/mine/y", "y", governance=Governance(owner_uid=0)))
say(errno_of(client.write, "/mine/y", "y", governance=Governance(owner_gid=0)))
say(errno_of(client.set_header, "/mine/x", governance=Governance(owner_uid=0)))
say(client.session.uid)
"""
    assert _answers(public, program, OTHER) == ["EPERM"] * 6 + [str(OTHER)]
    with public.connect() as root:
        root.set_quota("/mine", Quota(cubes=1000))
        root.set_header("/mine/x", governance=Governance(owner_uid=OWNER))
        assert root.stat("/mine/x").governance.owner_uid == OWNER


def test_one_user_cannot_take_all_sessions(public: Daemon) -> None:
    program = """
clients = [client]
while (errno := errno_of(lambda: clients.append(libmem.connect(sys.argv[1])))) == "OK":
    pass
say(f"{len(clients)} {errno}")
hear()
"""
    with Actor(public, program, OTHER, (OTHER,)) as greedy, public.connect() as root:
        greedy.expect("4 EMFILE")
        assert root.info().sessions == 5
        root.make_namespace("/t")
        greedy.kill()
        eventually(lambda: root.info().sessions == 1, "its sessions are over")


def test_a_socket_for_its_user_alone_keeps_others_out(idle: Daemon) -> None:
    """What --user does: the sockets' own mode refuses the connection."""
    require_other_users()
    idle.folder.chmod(0o755)
    idle.start()
    idle.runtime_dir.chmod(0o755)
    with Actor(idle, "", OTHER, (OTHER,)) as other, pytest.raises(AssertionError, match="status 1"):
        other.hear()


def test_a_fill_is_checked_again_when_it_is_sealed(public: Daemon) -> None:
    """Rights that were taken away between create and seal are gone."""
    program = """
fill = client.create("/shared/x", 100_000)
say("created")
hear()
say(errno_of(fill.seal))
"""
    with public.connect() as root:
        root.make_namespace("/shared", 0o777)
        with Actor(public, program, OTHER, (OTHER,)) as other:
            other.expect("created")
            root.write("/shared/x", b"root's", type=CubeType.BLOB)
            other.tell()
            other.expect("EACCES")
            other.end()
        assert root.read("/shared/x") == b"root's"
        with pytest.raises(MemError) as absent:
            root.stat("/shared/x@v2")
        assert absent.value.errno is Errno.ENOENT
        assert isinstance(root, libmem.Client)
