"""People who sign in, where the settings name an issuer."""

from typing import TYPE_CHECKING

from gateway.settings import Settings, SettingsError
from gateway.sign_in import roles_of

if TYPE_CHECKING:
    from gateway.access.people import People


def people_of(settings: Settings) -> "People | None":
    """Who signs in with a token; None: nobody. Raises SettingsError where the packages for it are missing."""
    issuer = settings.oidc_issuer
    if not issuer:
        return None
    try:
        # not for everybody: cryptography takes memory and time at the start, and need not be installed
        from gateway.access.issuer_keys import IssuerKeys  # noqa: PLC0415
        from gateway.access.people import People  # noqa: PLC0415
    except ImportError as problem:
        raise SettingsError(
            f"HOSTLER_OIDC_ISSUER needs packages that are not installed ({problem}): "
            "pip install -r requirements/people.txt"
        ) from problem
    keys = IssuerKeys(issuer)
    return People(keys, issuer, settings.oidc_audience, settings.oidc_claim, roles_of(settings.oidc_roles))
