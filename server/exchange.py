"""Messages out, replies in: who the clients are, what each was sent, and the bytes of everything.

Round 0 sends the mask and the settings to every node, once, and learns which client each node is. Later, replies come
back in client order, each as soon as all before it have come, so that a sum over them has the same bits whatever the
order of arrival, and none has to be held longer than that order needs.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Protocol

from flwr.app import Message
from flwr.serverapp import Grid

from fedmask.errors import FedmaskError, RejectedMessage
from fedmask.masks import Mask
from fedmask.runs.checkpoint import ClientRecord
from fedmask.runs.registry import Binding
from fedmask.wire.ledger import REJECTED, UNKNOWN_CLIENT, Direction, Ledger, LedgerLine
from fedmask.wire.messages import Facts, facts_of, pack, payload_of, whole_number, wire_bytes, word
from fedmask.wire.setup import Settings, Setup
from fedmask.wire.vectors import frame_sizes
from server.answers import Answer, answers, one_reply
from server.members import Member, apart, check_binding, check_budget, check_head, check_tasks, introduced
from server.open_requests import OpenRequests

NOTICE_SECONDS = 10.0
"""How often the server says whom it waits for."""

MASK_TRIES = 3
"""How often a client is sent the mask that does not answer: a deployed one may be killed meanwhile, and come back."""


class ReplyObserver(Protocol):
    """Whoever watches messages come and go."""

    def stage_started(self, server_round: int, stage: str, num_clients: int) -> None: ...
    def reply_arrived(self, client_id: int) -> None: ...


OnRejected = Callable[[int, RejectedMessage], None]
"""Told of each message that answers no request: client_id, or UNKNOWN_CLIENT; and the cause."""


class Exchange:
    """The server's side of every message of one run."""

    def __init__(
        self,
        settings: Settings,
        mask: Mask | None,
        ledger: Ledger,
        observer: ReplyObserver,
        hidden_size: int,
        registry: Mapping[str, Binding],
    ) -> None:
        """hidden_size: of the base model, which decides how large a head is. registry: by public key what each client
        may claim; empty where nobody is registered, as in a simulation."""
        self._settings = settings
        self._mask = mask
        self._hidden_size = hidden_size
        self._registry = registry
        self._bindings: dict[int, Binding] = {}
        """By node id."""
        self._ledger = ledger
        self._observer = observer
        self._client_ids: dict[int, int] = {}
        self._held_version: dict[int, int] = {}
        self._recorded: dict[int, list[LedgerLine]] = {}
        """By node id the ledger's lines of its last reply."""
        self._head_sizes: dict[str, int] = {}
        """By layout."""
        self.members: dict[int, Member] = {}
        """By client_id."""
        self.left_out: dict[str, str] = {}
        """Who does not take part though it was asked to, `client 3` or `node 123`, and why."""
        self._told_of: set[str] = set()

    @property
    def mask_digest(self) -> str:
        """Empty where the run has no mask."""
        return "" if self._mask is None else self._mask.digest

    def member_of(self, reply: Message) -> Member:
        return self.members[self._client_ids[reply.metadata.src_node_id]]

    def held_version(self, member: Member) -> int | None:
        """The newest version of the global vectors that the client was sent and answered; 0 are the zeros that all
        begin with. None where it may hold none, for it has said that it lacks something."""
        return self._held_version.get(member.client_id)

    def reject(self, reply: Message) -> None:
        """A reply that `replies` gave cannot be used: its bytes are not accepted ones."""
        if lines := self._recorded.pop(reply.metadata.src_node_id, None):
            self._ledger.reject(lines)

    # ---- round 0 -----------------------------------------------------------------------------------------------

    def send_mask(
        self,
        grid: Grid,
        num_clients: int,
        timeout: float,
        least: int | None = None,
        known: Mapping[int, ClientRecord] | None = None,
    ) -> None:
        """Send mask and settings to every node, once; again to who was going when they came, and is there again. A
        recipe goes out first; a client whose rebuilt mask has another digest is sent the indices themselves.

        least: clients without whom nothing begins; the others are left out where they cannot take part or are not there
        when the time is over. None: all are needed. known: what clients were when the run stopped.
        Raises FedmaskError where too few can take part: where one is not connected or does not answer, has another base
        model, claims what it may not, and where the clients of one task differ in what it means.
        """
        deadline, seconds_left, failed = time.monotonic() + timeout, timeout, dict[int, str]()
        for _ in range(MASK_TRIES):
            nodes = _await_nodes(grid, num_clients, seconds_left, least)
            self._bindings = self._bindings_of(grid)
            silent = [node_id for node_id in nodes if node_id not in self._client_ids.keys() | failed.keys()]
            self._observer.stage_started(0, "mask", len(silent))
            failed |= self._introduce(grid, silent, 0, seconds_left)
            if failed and least is None:
                node_id, why = next(iter(failed.items()))
                raise FedmaskError(
                    f"{len(failed)} of {len(nodes)} clients cannot take part: {self._told(node_id, why)}"
                )
            if len(self.members) + len(failed) == len(nodes):
                break
            seconds_left = _seconds_until(deadline)
        missing = {node_id for node_id in nodes if node_id not in self._client_ids.keys() | failed.keys()}
        if least is None:
            if missing:
                raise FedmaskError(
                    f"{len(missing)} of {len(nodes)} clients did not answer when they were sent the mask"
                )
            check_tasks(self.members.values())
            return
        failed |= dict.fromkeys(missing, "did not answer when it was sent the mask")
        self._go_on_without(failed, num_clients - len(nodes))
        self.leave_out(apart(self.members.values(), self._witnessed(known or {})), least)

    def _witnessed(self, known: Mapping[int, ClientRecord]) -> set[int]:
        """Of the members, those whose key was registered for their task, and those that are what they were."""
        return {
            client_id
            for client_id, member in self.members.items()
            if ((binding := self._bindings.get(member.node_id)) is not None and binding.task is not None)
            or ((record := known.get(client_id)) is not None and record.head_layout == member.head_layout)
        }

    def _go_on_without(self, failed: Mapping[int, str], num_absent: int) -> None:
        """failed: by node id why it cannot take part. num_absent: how many never connected."""
        self.left_out |= {self._called(node_id): why for node_id, why in failed.items()}
        if num_absent > 0:
            self.left_out["others"] = f"{num_absent} of the clients that were asked for are not connected"

    def _called(self, node_id: int) -> str:
        binding = self._bindings.get(node_id)
        return f"node {node_id}" if binding is None else f"client {binding.client_id}"

    def _told(self, node_id: int, why: str) -> str:
        """With the client's name before it, where it has none."""
        return why if why.startswith(("client ", "node ")) else f"{self._called(node_id)}: {why}"

    def leave_out(self, why_by_client: Mapping[int, str], least: int) -> None:
        """Go on without these clients. Raises FedmaskError where fewer than `least` are left."""
        for client_id, why in why_by_client.items():
            member = self.members.pop(client_id)
            del self._client_ids[member.node_id]
            self.left_out[f"client {client_id}"] = why
        if len(self.members) < least:
            who, why = next(iter(self.left_out.items()))
            raise FedmaskError(
                f"server.min_clients={least}: only {len(self.members)} clients can take part; {who}: {why}"
            )
        for who, why in self.left_out.items():
            if who not in self._told_of:
                logging.getLogger("fedmask").warning("the run goes on without %s: %s", who, why)
        self._told_of |= self.left_out.keys()

    def _bindings_of(self, grid: Grid) -> dict[int, Binding]:
        """By node id what the holder of its key was registered for."""
        if not self._registry:
            return {}
        nodes = ((node.node_id, self._registry.get(node.public_key.decode())) for node in grid.get_nodes())
        return {node_id: binding for node_id, binding in nodes if binding is not None}

    def wait_for_clients(self, grid: Grid, timeout: float) -> None:
        """Until all are connected that were, at most `timeout` seconds: a deployed client may be on its way back."""
        with suppress(FedmaskError):
            _await_nodes(grid, len(self.members), timeout)

    # ---- after a resume ----------------------------------------------------------------------------------------

    @contextmanager
    def counting_apart(self) -> Iterator[Ledger]:
        """What is sent in the block is counted in a ledger of its own: a run that never stopped sends none of it."""
        of_the_run, self._ledger = self._ledger, Ledger()
        try:
            yield self._ledger
        finally:
            self._ledger = of_the_run

    def hand_over(
        self, grid: Grid, server_round: int, held: Mapping[int, int | None], requests: Iterable[Message], timeout: float
    ) -> None:
        """Send vectors to clients that held some before their process ended. held: by client_id the version that each
        counts as holding from then on, for a run that never stopped would have it so."""
        self._held_version = {client_id: version for client_id, version in held.items() if version is not None}
        deadline = time.monotonic() + timeout
        # To whom they do not arrive says later that it lacks them, and is sent them again.
        deque(self._ask(grid, server_round, "vectors", requests, deadline, lambda client_id, rejection: None), maxlen=0)

    # ---- introductions -----------------------------------------------------------------------------------------

    def _introduce(self, grid: Grid, nodes: list[int], server_round: int, timeout: float) -> dict[int, str]:
        """Returns by node id why a client cannot take part."""
        mask = self._mask
        recipe = None if mask is None else mask.recipe
        refused, failed = self._introduce_with(
            grid, nodes, Setup(self._settings, recipe or mask), server_round, timeout
        )
        if refused and recipe is not None:
            refused, more = self._introduce_with(grid, refused, Setup(self._settings, mask), server_round, timeout)
            failed |= more
        other_tensors = (
            f"its base model has other tensors than the mask {self.mask_digest[:12]}, even the indices do not help"
        )
        return failed | dict.fromkeys(refused, other_tensors)

    def _introduce_with(
        self, grid: Grid, nodes: list[int], setup: Setup, server_round: int, timeout: float
    ) -> tuple[list[int], dict[int, str]]:
        """Returns the nodes whose base weights give another mask, and by node id what else went wrong.

        With other weights the mask's indices help; with another tokenizer or activation a client is refused.
        """
        setup_bytes = setup.to_bytes()
        sizes, refused, failed = dict[int, int](), list[int](), dict[int, str]()
        open_requests = OpenRequests(time.monotonic() + timeout)

        def messages() -> Iterator[Message]:
            for node_id in nodes:
                message = Message(pack(setup_bytes), node_id, "query.mask", group_id=str(server_round))
                sizes[node_id] = wire_bytes(message)
                open_requests.add(message)
                yield message

        for answer in answers(grid, messages(), timeout):
            node_id = open_requests.node_of(answer)
            whose = f"round {server_round}, node {node_id}"
            try:
                with one_reply(whose):
                    reply = open_requests.settle(answer)
            except RejectedMessage as rejection:
                self._record_stray(server_round, node_id, answer)
                cause = f"round {server_round}: a reply of node {node_id} to the mask is rejected ({rejection.cause})"
                logging.getLogger("fedmask").warning("%s: %s", cause, rejection)
                continue
            assert node_id is not None, "an answer to no request is rejected"
            if reply.has_error():
                failed[node_id] = f"a client could not be set up: {_reason(reply)}"
                continue
            try:
                with one_reply(whose):
                    facts = facts_of(reply.content)
                    client_id = self._claimed_id(node_id, facts)
                    self._ledger.record(server_round, client_id, "down", "mask", len(setup_bytes), sizes[node_id])
                    self._ledger.record(server_round, client_id, "up", "mask", 0, wire_bytes(reply))
                    if "mask-mismatch" in facts:
                        refused.append(node_id)
                        continue
                    self._check_inputs(client_id, facts)
                    self._enrol(client_id, node_id, facts)
            except RejectedMessage as rejection:
                failed[node_id] = str(rejection)
                continue
            self._observer.reply_arrived(client_id)
        return refused, failed

    def _claimed_id(self, node_id: int, facts: Facts) -> int:
        """The client_id that a node gives as its own. Raises FedmaskError where it cannot be."""
        client_id = whole_number(facts, "client-id")
        if self._registry:
            self._check_registered(node_id, client_id)
        if not 0 <= client_id < self._settings.clients:
            raise FedmaskError(f"a node claims client_id {client_id}; there are 0 to {self._settings.clients - 1}")
        if client_id in self.members and self.members[client_id].node_id != node_id:
            raise FedmaskError(
                f"two nodes claim client_id {client_id}; give every client an id of its own: client_id "
                "in its client.yaml, partition-id in a simulation (nodes "
                f"{self.members[client_id].node_id} and {node_id})"
            )
        if self._client_ids.get(node_id, client_id) != client_id:
            raise FedmaskError(f"client {self._client_ids[node_id]} claims to be client {client_id} now")
        return client_id

    def _check_registered(self, node_id: int, client_id: int) -> None:
        if (binding := self._bindings.get(node_id)) is None:
            raise FedmaskError(
                f"node {node_id} claims to be client {client_id}, and its key was registered for no client; register "
                "it with register_client.py"
            )
        if client_id != binding.client_id:
            raise FedmaskError(
                f"node {node_id} ({binding.key_name}) is registered as client {binding.client_id}, and claims to be "
                f"client {client_id}"
            )

    def _check_inputs(self, client_id: int, facts: Facts) -> None:
        """Raises FedmaskError where a client's base model reads or computes otherwise than the server's."""
        if "inputs-mismatch" in facts:
            told = RejectedMessage("inputs-mismatch", word(facts, "inputs-mismatch"))  # one line of bounded length
            raise FedmaskError(f"client {client_id}: {told}")
        expected = self._settings.inputs_digest
        if expected and (found := word(facts, "inputs-digest")) != expected:
            raise FedmaskError(
                f"client {client_id} has a base model with inputs digest {found[:80]!r}, the server's has {expected}"
            )

    def _enrol(self, client_id: int, node_id: int, facts: Facts) -> None:
        mask_digest = word(facts, "mask-digest")
        if mask_digest != self.mask_digest:
            raise FedmaskError(f"client {client_id} has mask {mask_digest}, the server's is {self.mask_digest}")
        member = introduced(client_id, node_id, facts)
        check_head(member, self._hidden_size)
        if self._settings.client.head == "shared":
            check_budget(self._head_sizes, member)
        if node_id in self._bindings:
            check_binding(member, self._bindings[node_id])
        if self.members.setdefault(client_id, member) != member:
            raise FedmaskError(f"client {client_id} was {self.members[client_id]}, and says now that it is {member}")
        self._head_sizes[member.head_layout] = member.head_size
        self._client_ids[node_id] = client_id
        self._held_version.setdefault(client_id, 0)

    # ---- rounds ------------------------------------------------------------------------------------------------

    def replies(
        self,
        grid: Grid,
        server_round: int,
        kind: str,
        version: int,
        requests: Iterable[Message],
        ask_again: Callable[[Member], Message],
        timeout: float,
        on_rejected: OnRejected,
    ) -> Iterator[Message]:
        """Send, and yield the replies in client order; count every byte. Who never answers yields nothing.

        version: of the global vectors that the requests are about. requests: in client order; each is made when the
        grid takes it, so that no more of them are held than are under way. A client that says it lacks its mask or
        vectors is sent the mask again and then `ask_again`, in the same round. timeout: seconds for all of it; nobody
        is asked after it, and what comes after it is late. on_rejected: told of what answers no request.
        """
        waiting, arrived, lacking = deque[int](), dict[int, Message](), list[int]()
        deadline = time.monotonic() + timeout
        all_requests = iter(requests)
        self._recorded.clear()

        def asked() -> Iterator[Message]:
            for request in all_requests:
                waiting.append(self._client_ids[request.metadata.dst_node_id])
                yield request

        def first_answers() -> Iterator[Message]:
            for reply in self._ask(grid, server_round, kind, asked(), deadline, on_rejected):
                if self._can_go_on(reply, version):
                    yield reply
                else:
                    lacking.append(self.member_of(reply).client_id)

        def second_answers() -> Iterator[Message]:
            members = [self.members[client_id] for client_id in sorted(lacking)]
            # Who cannot be set up again says a second time what it lacks, and is counted by whoever reads the reply.
            self._introduce(grid, [member.node_id for member in members], server_round, _seconds_until(deadline))
            for reply in self._ask(grid, server_round, kind, map(ask_again, members), deadline, on_rejected):
                self._can_go_on(reply, version)
                yield reply

        for given in (first_answers, second_answers):
            for reply in given():
                arrived[self.member_of(reply).client_id] = reply
                while waiting and waiting[0] in arrived:
                    self._observer.reply_arrived(waiting[0])
                    yield arrived.pop(waiting.popleft())
            if not lacking or time.monotonic() > deadline:
                break
        for client_id in waiting:
            if client_id in arrived:
                self._observer.reply_arrived(client_id)
                yield arrived.pop(client_id)
        deque(all_requests, maxlen=0)  # whoever makes the requests learns of all that were wanted

    def _ask(
        self,
        grid: Grid,
        server_round: int,
        kind: str,
        requests: Iterable[Message],
        deadline: float,
        on_rejected: OnRejected,
    ) -> Iterator[Message]:
        open_requests = OpenRequests(deadline)

        def counted() -> Iterator[Message]:
            for request in requests:
                if time.monotonic() > deadline:
                    return
                self._record(server_round, self._client_ids[request.metadata.dst_node_id], "down", kind, request)
                open_requests.add(request)
                yield request

        for answer in answers(grid, counted(), _seconds_until(deadline)):
            node_id = open_requests.node_of(answer)
            client_id = UNKNOWN_CLIENT if node_id is None else self._client_ids[node_id]
            try:
                with one_reply(f"round {server_round}, client {client_id}"):
                    reply = open_requests.settle(answer)
                    recorded = self._record(server_round, client_id, "up", kind, reply)
            except RejectedMessage as rejection:
                self._record_stray(server_round, node_id, answer)
                on_rejected(client_id, rejection)
                continue
            self._recorded[reply.metadata.src_node_id] = recorded
            yield reply

    def _record_stray(self, server_round: int, node_id: int | None, answer: Answer) -> None:
        """What answers no request, into the ledger; without bytes where it cannot be unpacked."""
        client_id = UNKNOWN_CLIENT if node_id is None else self._client_ids.get(node_id, UNKNOWN_CLIENT)
        size = 0
        if answer.reply is not None:
            with suppress(RejectedMessage), one_reply(f"round {server_round}, client {client_id}"):
                size = wire_bytes(answer.reply)
        self._ledger.record(server_round, client_id, "up", REJECTED, 0, size)

    def _can_go_on(self, reply: Message, version: int) -> bool:
        """Whether a client lacks nothing of what it needs to answer; then it holds the version that it was asked about.
        One that could not answer may hold it or not: the checksum of its next request tells."""
        client_id = self.member_of(reply).client_id
        if _lacks_something(reply):
            self._held_version.pop(client_id, None)
            return False
        if not reply.has_error():
            self._held_version[client_id] = version
        return True

    def _record(
        self, server_round: int, client_id: int, direction: Direction, kind: str, message: Message
    ) -> list[LedgerLine]:
        """One message into the ledger; a shared head's frame is counted under a kind of its own."""
        sizes = Counter[str]()
        if message.has_content():
            with suppress(RejectedMessage):  # what cannot be read is all framing
                sizes = frame_sizes(payload_of(message.content))
        head_bytes = sizes.pop("head", 0)
        payload_bytes = sum(sizes.values())
        return self._ledger.record(
            server_round, client_id, direction, kind, payload_bytes, wire_bytes(message), {"head": head_bytes}
        )


def _lacks_something(reply: Message) -> bool:
    """Whether the client says that it cannot answer with what it holds."""
    if reply.has_error():
        return False
    try:
        with one_reply(f"node {reply.metadata.src_node_id}"):
            return "missing" in facts_of(reply.content)
    except RejectedMessage:  # whoever reads the reply rejects it
        return False


def _seconds_until(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _reason(reply: Message) -> str:
    """Why a client answered with an error, on one line and no longer than reason."""
    return str(RejectedMessage("client-error", reply.error.reason or f"error {reply.error.code}"))


def _await_nodes(grid: Grid, num_clients: int, timeout: float, least: int | None = None) -> list[int]:
    """Node ids once all clients are connected, or as soon as the time is over where at least so many are: Flower lets
    nodes register while the server already runs."""
    started = time.monotonic()
    next_notice = started + NOTICE_SECONDS
    while len(nodes := list(grid.get_node_ids())) < num_clients:
        now = time.monotonic()
        if now > started + timeout:
            if least is not None and len(nodes) >= least:
                break
            raise FedmaskError(
                f"waited {timeout:.0f} s for {num_clients} clients, {len(nodes)} are connected; connect the others "
                f"(with flwr run: num-supernodes={num_clients})"
            )
        if now > next_notice:
            next_notice += NOTICE_SECONDS
            logging.getLogger("fedmask").warning("waiting for %d clients, %d are connected", num_clients, len(nodes))
        time.sleep(0.1)
    return nodes
