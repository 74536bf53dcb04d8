"""Every situation that Overread can end in, drawn as one tree.

    ServiceError
    ├── ConfigError              refuse to start: which file, which key, what is allowed
    ├── IntakeError              answered to the sender as a C-STORE status
    │   ├── OutOfSpace           A700  the disk is nearly full
    │   ├── WrongClass           A900  the data set is not of the class that was announced
    │   ├── NotUnderstood        C000  the bytes are no DICOM data set
    │   ├── ClassNotTaken        0122  it is of a class that is no storage SOP class of the standard (STOW-RS)
    │   └── SyntaxNotTaken       C122  it is in a transfer syntax that is none of the standard (STOW-RS)
    ├── CallerRefused            somebody may not come in, or asks what nobody may
    ├── SourceUnavailable        retry: the sender of a study can't be asked how much of it there is
    ├── ProviderUnavailable      retry: the site's OpenID Connect provider can't be asked who somebody is
    ├── StudyUnsuitable          final and nobody's fault; answered with a coded SR
    │   ├── Undecodable          the pixels of an image can't be decoded
    │   ├── NoModelApplies       no series that the model takes
    │   ├── MissingAttribute     a header lacks what the analysis needs
    │   ├── UnsuitableGeometry   the images are no volume that the model takes
    │   ├── RegionNotFound       the organ in which the model looks is not in the images
    │   └── UnknownCharacterSet  the patient's name can't be read, so it can't be written either
    ├── BackendError
    │   ├── BackendUnavailable   retry: no server, no device
    │   │   ├── Stopping         retry after the restart: the service begins nothing new
    │   │   └── Superseded       retry as another study: later instances came, and this answers nobody
    │   ├── BackendTimeout       retry: no answer in time
    │   ├── BackendCrashed       retry: the runtime died while the batch ran
    │   ├── OutOfMemory          retry with a smaller batch
    │   ├── TooLarge             final: a network does not fit into the memory limit even alone
    │   ├── DecoderLost          retry: the process that decoded pixels was ended by somebody else
    │   ├── ContractBroken       final: the network is not what model.toml says
    │   └── NetworkFails         final: the network, run alone, took the runtime down or never ended
    ├── EncodingError            final, our own bug: an object broke a rule before it was sent
    └── DeliveryError
        ├── PeerUnreachable      retry: no association comes about; nothing else would get there either
        ├── NoAnswer             retry: the association broke, or no answer came on it
        ├── AssociationRejected  the peer said no; ``retry`` tells whether for now or for good
        └── InstanceRefused      the peer refused this object; ``retry`` by its status
            ├── NotAccepted      final: it takes no such object, or not so encoded
            └── FrozenObjectLost final: our own file of it is gone; it is not even tried

Foreign exceptions become these in the edge modules and nowhere else (``raise ... from exc``).
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """A situation, told in four parts.

    Parameters
    ----------
    doing
        What was being done ("reading the configuration site.toml").
    found
        What was found instead of what was needed. UIDs only, never patient data.
    rule
        The rule that was broken, with its section where the standard has one.
    way_out
        What the reader can do about it.
    """

    retry: bool = False
    """Whether trying the same thing again later may help."""
    status: ClassVar[int] = 0xC000
    """The DIMSE status for a sender, where one waits (PS3.4 Table B.2-1)."""

    def __init__(self, *, doing: str, found: str, rule: str, way_out: str) -> None:
        self.doing, self.found, self.rule, self.way_out = doing, found, rule, way_out
        super().__init__(f"{doing}: {found}. {rule}. {way_out}.")

    def parts(self) -> dict[str, str]:
        """The message as fields, for logs and for the API."""
        return {"doing": self.doing, "found": self.found, "rule": self.rule, "way_out": self.way_out}


class ConfigError(ServiceError):
    """A setting, a model folder or the machine does not allow a start."""


class IntakeError(ServiceError):
    """An instance cannot be kept; the sender is told by the status."""


class OutOfSpace(IntakeError):
    """Refused: out of resources."""

    status = 0xA700


class WrongClass(IntakeError):
    """Error: the data set does not match the SOP class."""

    status = 0xA900


class NotUnderstood(IntakeError):
    """Error: cannot understand."""

    status = 0xC000


class ClassNotTaken(IntakeError):
    """Referenced SOP Class not supported (PS3.18 Table I.2-2); C-STORE refuses it in the association."""

    status = 0x0122


class SyntaxNotTaken(IntakeError):
    """Referenced Transfer Syntax not supported (PS3.18 Table I.2-2); C-STORE refuses it in the association."""

    status = 0xC122


class CallerRefused(ServiceError):
    """Somebody who may not come in, or asks what nobody may: too large, too slow, malformed. Logged and audited."""


class SourceUnavailable(ServiceError):
    """The sender of a study gives no answer to the question how much of it there is."""

    retry = True


class ProviderUnavailable(ServiceError):
    """The site's OpenID Connect provider gives no answer, or one that can't be used."""

    retry = True


class StudyUnsuitable(ServiceError):
    """The study, as it is, can't be analysed by a model. Final, and an answer in itself."""

    cause: ClassVar[str] = "pixels"
    """The reason as a key of `service.codes.CAUSES`."""


class Undecodable(StudyUnsuitable):
    """The pixels of an image are not what its header says, or nothing here can decode them."""


class NoModelApplies(StudyUnsuitable):
    """No series of the study is one that the model takes."""

    cause = "no-series"


class MissingAttribute(StudyUnsuitable):
    """A header lacks an attribute that the analysis needs."""

    cause = "attribute"


class UnsuitableGeometry(StudyUnsuitable):
    """The images do not form a volume, or not one that the model takes."""

    cause = "geometry"


class RegionNotFound(StudyUnsuitable):
    """The organ in which the model looks was not found in the images: nothing was looked at."""

    cause = "region"


class UnknownCharacterSet(StudyUnsuitable):
    """The patient's name, or another text that results must carry, is in a character set that nobody knows."""

    cause = "character-set"


class BackendError(ServiceError):
    """Inference failed."""


class BackendUnavailable(BackendError):
    """The backend or its device is not there now."""

    retry = True


class Stopping(BackendUnavailable):
    """The service is stopping. Never an answer to a study: it is analysed after the restart."""


class Superseded(BackendUnavailable):
    """Later instances came: the study is analysed anew, and this analysis answers nobody."""


class BackendTimeout(BackendError):
    """The backend did not answer in time."""

    retry = True


class BackendCrashed(BackendError):
    """The runtime died while the batch ran; whose fault it was shows when each runs alone."""

    retry = True


class OutOfMemory(BackendError):
    """The device's memory did not suffice for the batch."""

    retry = True


class TooLarge(BackendError):
    """A network and one patch do not fit into the memory that the settings allow, even alone."""


class DecoderLost(BackendError):
    """The process that decoded pixels was ended by somebody else."""

    retry = True


class ContractBroken(BackendError):
    """The network is not the one that ``model.toml`` describes."""


class EncodingError(ServiceError):
    """An object of ours breaks a rule. It is not sent."""


class DeliveryError(ServiceError):
    """An object did not reach a destination."""


class PeerUnreachable(DeliveryError):
    """No association with the destination comes about."""

    retry = True


class NoAnswer(DeliveryError):
    """The association broke, or the destination did not answer on it: perhaps because of this object."""

    retry = True


class AssociationRejected(DeliveryError):
    """The destination rejected the association (PS3.8 Table 9-21)."""

    def __init__(self, *, doing: str, found: str, rule: str, way_out: str, retry: bool) -> None:
        super().__init__(doing=doing, found=found, rule=rule, way_out=way_out)
        self.retry = retry


class InstanceRefused(DeliveryError):
    """The destination did not take this object (PS3.4 Table B.2-1)."""

    def __init__(self, *, doing: str, found: str, rule: str, way_out: str, retry: bool) -> None:
        super().__init__(doing=doing, found=found, rule=rule, way_out=way_out)
        self.retry = retry


class NotAccepted(InstanceRefused):
    """The destination accepts no presentation context for it: something else may go in its place."""

    def __init__(self, *, doing: str, found: str, rule: str, way_out: str) -> None:
        super().__init__(doing=doing, found=found, rule=rule, way_out=way_out, retry=False)


class FrozenObjectLost(InstanceRefused):
    """The frozen bytes are gone or damaged: there is nothing to send."""

    def __init__(self, *, doing: str, found: str, rule: str, way_out: str) -> None:
        super().__init__(doing=doing, found=found, rule=rule, way_out=way_out, retry=False)


class NetworkFails(BackendError):
    """The network takes the runtime down, or does not end within the time limit, even when it runs alone."""
