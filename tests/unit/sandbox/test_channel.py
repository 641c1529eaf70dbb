"""Frames over a socket pair."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from ci_platform.sandbox.channel import (
    FRAME_BYTES_MAX,
    Channel,
    ChannelClosed,
    Frame,
    Silence,
)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours), theirs


def test_frames_come_as_they_were_sent(ends: tuple[Channel, socket.socket]) -> None:
    channel, other = ends
    far = Channel(other)
    far.send(Frame.LOG, b"one")
    far.send(Frame.NEXT, b"")
    assert channel.receive(seconds=1) == (Frame.LOG, b"one")
    assert channel.readable()
    assert channel.receive(seconds=1) == (Frame.NEXT, b"")
    assert not channel.readable()


def test_a_large_frame_comes_whole(ends: tuple[Channel, socket.socket]) -> None:
    channel, other = ends
    payload = bytes(range(256)) * 40_000
    sender = threading.Thread(target=Channel(other).send, args=(Frame.ANSWER, payload))
    sender.start()
    assert channel.receive(seconds=10) == (Frame.ANSWER, payload)
    sender.join()


def test_silence_is_noticed_within_a_frame_too(ends: tuple[Channel, socket.socket]) -> None:
    channel, other = ends
    with pytest.raises(Silence):
        channel.receive(seconds=0.01)
    other.sendall(b"L\x03\x00\x00\x00on")
    with pytest.raises(Silence):
        channel.receive(seconds=0.01)


def test_nobody_waits_for_a_reader_that_does_not_read(ends: tuple[Channel, socket.socket]) -> None:
    channel, _ = ends
    with pytest.raises(Silence):
        channel.send(Frame.ACTIVATE, b"x" * (8 << 20), seconds=0.01)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"L\x03\x00\x00\x00on",
        b"?\x00\x00\x00\x00",
        b"L" + (FRAME_BYTES_MAX + 1).to_bytes(4, "little"),
    ],
)
def test_what_is_no_frame_closes_the_channel(
    ends: tuple[Channel, socket.socket], data: bytes
) -> None:
    channel, other = ends
    other.sendall(data)
    other.close()
    with pytest.raises(ChannelClosed):
        channel.receive(seconds=1)


def test_sending_to_nobody_closes_the_channel(ends: tuple[Channel, socket.socket]) -> None:
    channel, other = ends
    other.close()
    with pytest.raises(ChannelClosed):
        channel.send(Frame.NEXT, b"x")
