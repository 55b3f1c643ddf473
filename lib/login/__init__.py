"""The login page, written by the server: it works without scripts, and shows nothing but itself."""

from lib.login.page import ASSETS, HEADERS, asset, login_page

__all__ = ["ASSETS", "HEADERS", "asset", "login_page"]
