"""What a client does about silence, time-outs and restarts; time is passed in."""

from dist_net.serving.client.conversation import SILENCE_S, Conversation, Deadline, Exchange
from dist_net.serving.pool.requests import Status
from dist_net.wire.serving_messages import Answer, Ask, Cancel, Describe, Ping, Pong


def ask(conversation: Conversation, now: float = 0.0, timeout_s: float = 10.0) -> Exchange:
    request = Ask(conversation.next_id(), "digits", "", False, timeout_s, (b"1234",))
    return conversation.open(request, Deadline.after(timeout_s, now))


def answer_to(exchange: Exchange) -> Answer:
    return Answer(exchange.request.request_id, Status.OK, "1", "", 0.0, 0.0, 0.0, (b"out.",))


def begun(first_id: int = 1) -> Conversation:
    """A conversation with a gateway that has told its name."""
    conversation = Conversation(first_id)
    conversation.ping(0.0)
    assert conversation.heard(Pong("first", True), 0.0) == []
    return conversation


def test_each_request_gets_its_own_reply_in_any_order() -> None:
    conversation = begun()
    one, other = ask(conversation), ask(conversation)
    conversation.heard(answer_to(other), 0.1)
    assert one.reply is None
    assert len(conversation) == 1
    conversation.heard(answer_to(one), 0.2)
    assert (one.reply, other.reply) == (answer_to(one), answer_to(other))
    assert len(conversation) == 0


def test_an_answer_to_a_request_of_another_client_answers_none_of_this_one() -> None:
    one, other = begun(first_id=7 << 50), begun(first_id=3 << 50)
    mine, theirs = ask(one), ask(other)
    one.heard(answer_to(theirs), 0.1)
    assert mine.reply is None


def test_a_second_answer_changes_nothing() -> None:
    conversation = begun()
    exchange = ask(conversation)
    conversation.heard(answer_to(exchange), 0.1)
    conversation.heard(answer_to(exchange)._replace(version="2"), 0.2)
    assert exchange.reply == answer_to(exchange)


def test_what_is_overdue_is_given_up_and_cancelled_and_its_late_answer_dropped() -> None:
    conversation = begun()
    short, long = ask(conversation, timeout_s=0.1), ask(conversation, timeout_s=1.0)
    assert conversation.check(0.05) == []
    assert conversation.check(0.1) == [Cancel(short.request.request_id)]
    assert isinstance(short.reply, Answer)
    assert short.reply.status == Status.EXPIRED
    conversation.heard(answer_to(short), 0.2)
    assert short.reply.status == Status.EXPIRED
    assert long.reply is None


def test_an_answer_that_came_counts_though_its_time_is_over() -> None:
    conversation = begun()
    exchange = ask(conversation, timeout_s=0.1)
    conversation.heard(answer_to(exchange), 5.0)
    assert conversation.check(5.0) == []
    assert exchange.reply == answer_to(exchange)


def test_a_silent_gateway_is_pinged_now_and_then_while_something_is_open() -> None:
    conversation = begun()
    assert conversation.check(SILENCE_S) == []
    ask(conversation)
    assert conversation.check(SILENCE_S) == [Ping()]
    assert conversation.check(1.5 * SILENCE_S) == []
    assert conversation.check(2 * SILENCE_S) == [Ping()]


def test_a_gateway_that_was_started_anew_is_asked_again_with_the_time_that_is_left() -> None:
    conversation = begun()
    exchange = ask(conversation, timeout_s=10.0)
    described = conversation.open(Describe(conversation.next_id()), Deadline.after(10.0, 0.0))
    answered = ask(conversation)
    conversation.heard(answer_to(answered), 1.0)
    assert isinstance(exchange.request, Ask)
    assert conversation.heard(Pong("second", True), 4.0) == [
        exchange.request._replace(timeout_s=6.0),
        described.request,
    ]
    assert conversation.heard(Pong("second", True), 5.0) == []


def test_the_first_ping_asks_again_only_if_an_earlier_one_was_lost() -> None:
    conversation = Conversation()
    conversation.ping(0.0)
    ask(conversation)
    assert conversation.heard(Pong("first", True), 0.1) == []
    conversation = Conversation()
    conversation.ping(0.0)
    exchange = ask(conversation)
    assert conversation.check(SILENCE_S) == [Ping()]
    (again,) = conversation.heard(Pong("first", True), SILENCE_S)
    assert again.request_id == exchange.request.request_id


def test_what_was_cancelled_is_not_asked_again() -> None:
    conversation = begun()
    exchange = ask(conversation)
    assert conversation.cancel(exchange) == Cancel(exchange.request.request_id)
    assert isinstance(exchange.reply, Answer)
    assert exchange.reply.status == Status.CANCELLED
    assert conversation.heard(Pong("second", True), 1.0) == []


def test_all_that_is_open_can_be_cancelled() -> None:
    conversation = begun()
    requests = [ask(conversation).request for _ in range(3)]
    assert conversation.cancel_all() == [Cancel(each.request_id) for each in requests]
    assert len(conversation) == 0
