"""What differs between S3, Google Cloud Storage and Azure Blob Storage: limits, what messages advise, where identities come from.

Facts only; nothing here speaks to anybody.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cloud:
    """One kind of bucket.

    `parts_max` is how many parts one upload may have. The `…_hints` are what a person can do: when the store refused
    (`access`), when there was nobody to be (`identity`), when the bucket is elsewhere (`place`), and when its host is
    unknown (`host`). `metadata` matches the address at which a machine or pod asks who it is, `tokens` that of the
    service that gives tokens out: errors from there are about credentials, not about objects.
    """

    scheme: str
    bucket_word: str
    parts_max: int
    access_hints: tuple[str, ...]
    identity_hints: tuple[str, ...]
    place_hints: tuple[str, ...]
    host_hints: tuple[str, ...]
    metadata: re.Pattern[str]
    tokens: re.Pattern[str]


S3 = Cloud(
    scheme="s3",
    bucket_word="bucket",
    parts_max=10_000,
    access_hints=("check the key and secret (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), and what they may do in this bucket",),
    identity_hints=(
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "or give this machine or its Kubernetes service account a role that may use the bucket",
    ),
    place_hints=("set AWS_REGION to the bucket's region, or correct BACKUP_ENDPOINT",),
    host_hints=("AWS's own host names hold the region: check AWS_REGION",),
    # AWS_METADATA_ENDPOINT moves it; elsewhere nobody answers there.
    metadata=re.compile(r"//(169\.254\.\d+\.\d+|\[?fd00:ec2::|[^/]+/latest/(api/token|meta-data/))"),
    tokens=re.compile(r"//sts\.|AssumeRoleWithWebIdentity"),
)

GCS = Cloud(
    scheme="gs",
    bucket_word="bucket",
    parts_max=10_000,
    access_hints=(
        "check what this identity may do in this bucket: the role Storage Object User (roles/storage.objectUser) is enough",
    ),
    identity_hints=(
        "give the Kubernetes service account or this machine an identity that may use the bucket",
        "or name a service account's key file in GOOGLE_APPLICATION_CREDENTIALS",
    ),
    place_hints=("correct BACKUP_ENDPOINT, or leave it out",),
    host_hints=(),
    # GCE_METADATA_HOST and GCE_METADATA_IP move it.
    metadata=re.compile(r"//(169\.254\.\d+\.\d+|metadata\.google\.internal|[^/]+/computeMetadata/)"),
    tokens=re.compile(r"//(accounts\.google\.com/o/oauth2|oauth2\.googleapis\.com)"),
)

AZURE = Cloud(
    scheme="az",
    bucket_word="container",
    parts_max=50_000,
    access_hints=(
        "check AZURE_STORAGE_ACCOUNT and its key (AZURE_STORAGE_ACCOUNT_KEY)",
        "or what the identity may do in this container: the role Storage Blob Data Contributor is enough",
        "a clock that is 15 minutes wrong is refused, too",
    ),
    identity_hints=(
        "tie a managed identity to the Kubernetes service account or to this machine",
        "or set AZURE_STORAGE_ACCOUNT_KEY, or AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET",
    ),
    place_hints=("correct AZURE_STORAGE_ACCOUNT or BACKUP_ENDPOINT",),
    host_hints=("each storage account has a host name of its own: check AZURE_STORAGE_ACCOUNT",),
    # AZURE_MSI_ENDPOINT and IDENTITY_ENDPOINT move it; the query is the same everywhere.
    metadata=re.compile(r"//(169\.254\.\d+\.\d+|[^/]+/\S*api-version=[0-9-]+&resource=)"),
    tokens=re.compile(r"/oauth2/v2\.0/token"),
)
