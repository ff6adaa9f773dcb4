-- The tables of the site: what a site like this has anyway. The user `ann` is an editor and an administrator, `bob` is
-- neither; the password of both is "example".
CREATE TABLE users (
    name VARCHAR(50) PRIMARY KEY,
    password VARCHAR(255) NOT NULL
);

-- Ids compare exactly, or a session would have more than one id.
CREATE TABLE sessions (
    id CHAR(32) CHARACTER SET ascii COLLATE ascii_bin PRIMARY KEY,
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

INSERT INTO users VALUES
    ('ann', '$2y$10$u3WamGEAu8X0ijOhYukAHus8BPIdTKiREyVF5V9.dU.IJX.Kk.FUm'),
    ('bob', '$2y$10$u3WamGEAu8X0ijOhYukAHus8BPIdTKiREyVF5V9.dU.IJX.Kk.FUm');
INSERT INTO memberships VALUES ('ann', 'editors'), ('ann', 'admins');
