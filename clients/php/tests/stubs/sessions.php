<?php

// Before the recipe of PHP's own sessions: where the files are.

ini_set('session.save_path', getenv('SESSIONS'));
