"""How a call ends: with OK, with the one failure that everything that went wrong is turned into, or by its caller.

No way out may leave a caller without a status, or with a foreign exception's text. CancelledError is raised only if the
caller has ended the call, since nothing can be sent then.
"""

import asyncio
from collections.abc import Coroutine

from bridge.core.errors import BridgeError, Code
from bridge.server.call import RpcCall
from bridge.server.rpc import ClientDisconnectedError, RefusedByTransportError
from bridge.upstream.failures import with_answer
from ollmbridge.v1 import error_details_pb2 as details_pb2

__all__ = ["run_to_its_end"]


async def run_to_its_end(call: RpcCall, run: Coroutine[object, object, None]) -> BridgeError | None:
    """Return the failure that running a call ended with, None if it is OK.

    Raises CancelledError if the caller has ended the call, and RefusedByTransportError.
    """
    try:
        await run
    except asyncio.CancelledError as error:
        failure = _explain_cancellation(call, error)
        if failure is None:
            raise
        return failure
    except ClientDisconnectedError as error:
        raise asyncio.CancelledError from error
    except BridgeError as error:
        _forget_frames(error)
        return _with_progress(error, call)
    except (RefusedByTransportError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a foreign panic too must end in a status
        return _with_progress(_internal_error(error), call)
    return None


def _explain_cancellation(call: RpcCall, error: asyncio.CancelledError) -> BridgeError | None:
    """Return the failure that a cancellation stands for, None if the caller has ended the call.

    It is not raised again here: this frame would hold the error, and the error this frame, and both all of the call.
    """
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        return _internal_error(error)  # another task's, leaked out of a library
    if call.interruption is not None and not task.uncancel():
        return _with_progress(call.interruption, call)
    return None


def _with_progress(failure: BridgeError, call: RpcCall) -> BridgeError:
    """Add how far the stream had come, if what ended it did not know, and what the head of the answer said."""
    if failure.upstream is None and call.chunks:
        failure = failure.with_progress(http_status=0, chunks=call.chunks, usage=call.usage)
    return with_answer(failure, call.upstream)


def _forget_frames(error: BaseException | None) -> None:
    """Let go of the frames that an error and those behind it have passed.

    They hold all of the call, and often the error itself, as an answer does that has failed: a circle, which would stay
    until the collector comes to it. Nobody reads the stack of a failure that is no fault of ours.
    """
    if error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        _forget_frames(error.__cause__)
        _forget_frames(error.__context__)


def _internal_error(error: BaseException) -> BridgeError:
    """Return the failure of a fault of our own. Its text stays here, since nobody has checked what it says."""
    message = f"internal error in the bridge ({type(error).__name__}); its log has more under this request id"
    failure = BridgeError(Code.INTERNAL, details_pb2.ERROR_REASON_BRIDGE_FAULT, message)
    failure.__cause__ = error
    return failure
