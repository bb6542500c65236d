"""The server keeps the versions that somebody may still compute with: the newest staleness + 1."""


def serve(theta, gradient, updates, staleness, lr):
    versions = [theta]
    for _ in range(updates):
        versions.append(versions[-1] - lr * gradient(versions[0]))  # a new array, so old versions stay as they were
        versions = versions[-(staleness + 1) :]
    return versions[-1]
