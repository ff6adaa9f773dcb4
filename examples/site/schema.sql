-- The tables of the site: what a site like this has anyway. The user `ann` is an editor and an administrator, `bob` is
-- neither; the password of both is "example".
CREATE TABLE users (
    name VARCHAR(50) PRIMARY KEY,
    password VARCHAR(255) NOT NULL
);

-- Ids compare exactly, a space at the end included, or a session would have more than one id.
CREATE TABLE sessions (
    id VARBINARY(32) PRIMARY KEY,
    user VARCHAR(50) NOT NULL,
    expires BIGINT NOT NULL, -- Unix time
    ip VARCHAR(45) NOT NULL,
    KEY (user)
);

CREATE TABLE memberships (
    user VARCHAR(50),
    name VARCHAR(50),
    PRIMARY KEY (user, name)
);

CREATE TABLE comments (
    id BIGINT AUTO_INCREMENT PRIMARY KEY,
    user VARCHAR(50) NOT NULL,
    text VARCHAR(500) CHARACTER SET utf8mb4 NOT NULL
);

INSERT INTO users VALUES
    ('ann', '$2y$10$u3WamGEAu8X0ijOhYukAHus8BPIdTKiREyVF5V9.dU.IJX.Kk.FUm'),
    ('bob', '$2y$10$u3WamGEAu8X0ijOhYukAHus8BPIdTKiREyVF5V9.dU.IJX.Kk.FUm');
INSERT INTO memberships VALUES ('ann', 'editors'), ('ann', 'admins');
