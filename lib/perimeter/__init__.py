"""What every request meets before anybody asks who sends it: sizes, where it comes from, and the headers of answers."""

from lib.perimeter.body_limit import BodyLimit
from lib.perimeter.cors import ExactCors
from lib.perimeter.headers import SecurityHeaders
from lib.perimeter.repeated_headers import RepeatedHeaders
from lib.perimeter.same_origin import SameOrigin

__all__ = ["BodyLimit", "ExactCors", "RepeatedHeaders", "SameOrigin", "SecurityHeaders"]
